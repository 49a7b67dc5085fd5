"""Does a network copy? The nearest training picture of each sample, in pixels or in features."""

import math

import torch
from torch import Tensor


def nearest(pictures: Tensor, training: Tensor, rank: int = 1) -> tuple[Tensor, Tensor]:
    """The nearest training picture of each picture: its RMS distance and its number, both (N,).

    pictures and training: uint8 pixels, which are brought to [0, 1], or features (N, D).
    rank 2: the second nearest, for pictures that are themselves in the training set.
    """
    most = 255 if pictures.dtype == torch.uint8 else 1
    x, best = pictures.flatten(1).float() / most, torch.full((len(pictures), rank), math.inf)
    number = torch.zeros(len(pictures), rank, dtype=torch.int64)
    for start in range(0, len(training), 5000):
        part = training[start : start + 5000].flatten(1).float() / most
        best, which = torch.cat([best, torch.cdist(x, part)], 1).topk(rank, largest=False)
        here = torch.arange(start, start + len(part)).expand(len(x), -1)
        number = torch.cat([number, here], 1).gather(1, which)
    return best[:, -1] / x.shape[1] ** 0.5, number[:, -1]


def nearest_of_views(views: list[Tensor], training: Tensor, rank: int = 1) -> tuple[Tensor, Tensor]:
    """`nearest` of pictures that are given in several views, such as mirrored: that of the closest view of each."""
    found = [nearest(view, training, rank) for view in views]
    apart, view = torch.stack([apart for apart, _ in found]).min(0)
    return apart, torch.stack([number for _, number in found]).gather(0, view[None])[0]


def closeness(apart: Tensor, real_apart: Tensor, count: int) -> dict:
    """The mean distance to the nearest of `count` training pictures, of samples and of real pictures, see `nearest`.

    And the share of the samples that are closer than 99 % of the real pictures are.
    """
    closer = (apart < real_apart.quantile(0.01)).double().mean().item()
    means = {"samples": apart.mean().item(), "real": real_apart.mean().item()}
    return {"n": count, **means, "closer_than_99_percent_of_real": closer}
