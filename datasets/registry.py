"""The tables of loaders. To add a data set, write its loader in a new file of this folder and decorate it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

Found = np.ndarray | list[Path]  # pictures, or their files
Loader = Callable[[Path, str, bool], Found]  # (data_path, split, download), see `find_images`
LabelLoader = Callable[[Path, str, Found], tuple[np.ndarray, list[str]]]  # (data_path, split, found), see `find_labels`
LOADERS: dict[str, Loader] = {}
LABEL_LOADERS: dict[str, LabelLoader] = {}
DIGITS = [str(digit) for digit in range(10)]  # the names of the classes of Digits and Mnist


def data_set(name: str, table: dict = LOADERS) -> Callable[[Callable], Callable]:
    """A decorator that registers a loader as LOADERS[name].

    name: the name of a block of config.yaml. The block, and every block that is based on it, then uses this loader.
    """
    return lambda loader: table.update({name: loader}) or loader


data_labels = partial(data_set, table=LABEL_LOADERS)  # the same for the class labels of what a loader of pictures found
