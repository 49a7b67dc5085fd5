"""How close samples are to real pictures: the numbers, and the features that they are computed in."""
