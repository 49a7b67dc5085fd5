"""Networks: pictures and timesteps in, pictures out. No betas, no files, no data sets in here."""

from models.unet import UNet

__all__ = ["UNet", "build_model"]


def build_model(**keywords) -> UNet:
    """The network that a recipe describes, freshly initialised, from plain keywords (see `UNet`).

    Raises ValueError, in one line, when the keywords do not fit together.
    """
    return UNet(**keywords)
