"""Does a network copy? The nearest training picture of each sample, in pixels or in features."""

import math

import torch
from torch import Tensor


def nearest(pictures: Tensor, training: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The nearest training picture of each picture: its RMS distance and its number, both (N,).

    pictures and training: uint8 pixels, which are brought to [0, 1], or features (N, D).
    own: int64 (N,), the numbers of pictures that are themselves in the training set, where they do not count.
    """
    most = 255 if pictures.dtype == torch.uint8 else 1
    x, best = pictures.flatten(1).float() / most, torch.full((len(pictures),), math.inf)
    number = torch.zeros(len(pictures), dtype=torch.int64)
    for start in range(0, len(training), 5000):
        part = training[start : start + 5000].flatten(1).float() / most
        apart = torch.cdist(x, part)
        if own is not None:
            rows = ((own >= start) & (own < start + len(part))).nonzero()[:, 0]
            apart[rows, own[rows] - start] = math.inf
        least, which = apart.min(1)
        number = torch.where(least < best, start + which, number)
        best = torch.minimum(least, best)
    return best / x.shape[1] ** 0.5, number


def nearest_of_views(views: list[Tensor], training: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`nearest` of pictures that are given in several views, such as mirrored: that of the closest view of each."""
    found = [nearest(view, training, own) for view in views]
    apart, view = torch.stack([apart for apart, _ in found]).min(0)
    return apart, torch.stack([number for _, number in found]).gather(0, view[None])[0]


def closeness(apart: Tensor, real_apart: Tensor, count: int, mirrored: bool = False) -> dict:
    """The mean distance to the nearest of `count` training pictures, of samples and of real pictures, see `nearest`.

    And the share of the samples that are closer than 99 % of the real pictures are.
    """
    closer = (apart < real_apart.quantile(0.01)).double().mean().item()
    means = {"samples": apart.mean().item(), "real": real_apart.mean().item()}
    return {"n": count, "mirrored": mirrored, **means, "closer_than_99_percent_of_real": closer}
