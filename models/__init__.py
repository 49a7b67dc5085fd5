"""Networks: from noisy pictures and timesteps to predictions. Independent of the diffusion, files and data sets."""

import torch
from torch import Tensor, nn

from models.diffusers_unet import DiffusersUNet
from models.dit import DiT
from models.unet import UNet

__all__ = ["NETWORKS", "DiT", "UNet", "build_model", "relabelled"]

NETWORKS = {"unet": UNet, "dit": DiT}


def build_model(network: str = "unet", diffusers_unet: dict | None = None, **keywords) -> nn.Module:
    """A newly initialised network of the table, or a `DiffusersUNet` if diffusers_unet is given.

    keywords: the arguments of the network's class; a DiffusersUNet needs all of those of `UNet`.
    Raises ValueError, with a message of one line, if they do not fit together, and TypeError for one that it lacks.
    """
    if network not in NETWORKS:
        raise ValueError(f"network {network!r} is not known; known are {', '.join(NETWORKS)}")
    if diffusers_unet is None:
        return NETWORKS[network](**keywords)
    if network != "unet":
        raise ValueError(f"network={network}: diffusers_unet describes a unet: set diffusers_unet=null")
    return DiffusersUNet(diffusers_unet, **keywords)


def relabelled(tensors: dict[str, Tensor], rows: list[int | None]) -> dict[str, Tensor]:
    """A network's weights for other classes: of each new class the number of the old one that it is, or None.

    A class without an old one gets the embedding of no label, or 0 if the weights know no labels, so that at first it
    changes nothing. For rows=[], a network without labels, the embedding of no label becomes part of the bias of
    time_embed, to whose output every network here adds it.
    """
    tensors = dict(tensors)
    of_diffusers = "unet.class_embedding.weight", "unet.time_embedding.linear_2.bias"
    label, time = of_diffusers if of_diffusers[0] in tensors else ("label_embed.weight", "time_embed.2.bias")
    old = tensors.pop(label, torch.zeros_like(tensors[time])[None])
    if not rows:
        return tensors | {time: tensors[time] + old[-1]}
    new = [old[-1 if row is None else row] for row in rows]
    return tensors | {label: torch.stack([*new, old[-1]])}
