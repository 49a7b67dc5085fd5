"""Networks: pictures and timesteps in, pictures out. No betas, no files, no data sets in here."""

from torch import nn

from models.diffusers_unet import DiffusersUNet
from models.unet import UNet

__all__ = ["UNet", "build_model"]


def build_model(diffusers_unet: dict | None = None, **keywords) -> nn.Module:
    """The network that a recipe describes, freshly initialised, from plain keywords (see `UNet` and `DiffusersUNet`).

    Raises ValueError, in one line, when the keywords do not fit together.
    """
    return UNet(**keywords) if diffusers_unet is None else DiffusersUNet(diffusers_unet, **keywords)
