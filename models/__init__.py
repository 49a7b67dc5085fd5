"""Networks: from noisy pictures and timesteps to predictions. Independent of the diffusion, files and data sets."""

from torch import nn

from models.diffusers_unet import DiffusersUNet
from models.unet import UNet

__all__ = ["UNet", "build_model"]


def build_model(diffusers_unet: dict | None = None, **keywords) -> nn.Module:
    """A newly initialised network: a `UNet`, or a `DiffusersUNet` if diffusers_unet is given.

    keywords: the arguments of `UNet`; a DiffusersUNet needs all of them.
    Raises ValueError, with a message of one line, if they do not fit together, and TypeError for one that `UNet` lacks.
    """
    return UNet(**keywords) if diffusers_unet is None else DiffusersUNet(diffusers_unet, **keywords)
