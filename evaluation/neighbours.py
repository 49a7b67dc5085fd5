"""Does a network copy? The nearest training pictures of each sample, in pixels or in features."""

from collections.abc import Callable

import torch
from torch import Tensor

from evaluation.parts import in_parts

NEXT = 3  # neighbours after the nearest one, which tell how near is near
SPARE = 12  # more candidates than that are measured exactly, because float32 orders near ties by chance


def values(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, D): uint8 pixels brought to [0, 1], or features as they are."""
    return x.flatten(1).to(dtype) / (255 if x.dtype == torch.uint8 else 1)


def shapes(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, D): pictures at mean 0 and length 1, so that contrast does not count. A picture of a single grey is 0."""
    x = x.flatten(1).to(dtype)
    x = x - x.mean(1, keepdim=True)
    return x / x.norm(dim=1, keepdim=True).clamp(min=1e-3)


def nearest(
    pictures: Tensor, training: Tensor, own: Tensor | None = None, of: Callable = values
) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest training picture of each picture: its RMS distance, its number, and how it stands out, all (N,).

    That is the ratio of its distance to the mean distance of the next three (as Carlini et al. 2023 do
    with fifty): 0 for a copy, nearly 1 for a picture that is as far from the nearest as from the others.

    pictures and training: uint8 pixels or features. of: what is compared, `values` or `shapes`.
    own: int64 (N,), the numbers of pictures that are themselves in the training set, where they do not count.
    """
    count, found = min(1 + NEXT + SPARE, len(training) - (own is not None)), []
    for part in in_parts(pictures):
        x = of(pictures[part], torch.float32)
        far, which = torch.empty(len(x), 0), torch.empty(len(x), 0, dtype=torch.int64)
        for others in in_parts(training):
            y = of(training[others], torch.float32)
            apart = torch.addmm(y.square().sum(1), x, y.T, alpha=-2)  # squared, less |x|²
            numbers = torch.arange(others.start, others.start + len(y)).repeat(len(x), 1)
            if own is not None:
                apart[numbers == own[part, None]] = torch.inf
            far, best = torch.cat([far, apart], 1).topk(min(count, far.shape[1] + len(y)), largest=False)
            which = torch.cat([which, numbers], 1).gather(1, best)
        found.append(exactly(pictures[part], training, which.sort(1).values, of))  # the first of equal ones comes first
    return tuple(map(torch.cat, zip(*found, strict=True)))


def exactly(pictures: Tensor, training: Tensor, which: Tensor, of: Callable) -> tuple[Tensor, Tensor, Tensor]:
    """What `nearest` returns, from candidates (N, count), by differences in float64: an exact copy is at distance 0."""
    apart = torch.empty(which.shape, dtype=torch.float64)
    for part in in_parts(pictures, 1 << 22):
        x = of(pictures[part], torch.float64)
        for i, numbers in enumerate(which[part].T):
            apart[part, i] = (x - of(training[numbers], torch.float64)).square().mean(1).sqrt()
    apart, order = apart.sort(dim=1, stable=True)
    stands_out = apart[:, 0] / apart[:, 1 : 1 + NEXT].mean(1).clamp(min=1e-12)
    return apart[:, 0], which.gather(1, order)[:, 0], stands_out


def nearest_of_views(
    views: list[Tensor], training: Tensor, own: Tensor | None = None, of: Callable = values
) -> tuple[Tensor, Tensor, Tensor]:
    """`nearest` of pictures that are given in several views, such as mirrored: that of the closest view of each."""
    found = [torch.stack(values) for values in zip(*(nearest(view, training, own, of) for view in views), strict=True)]
    view = found[0].argmin(0, keepdim=True)
    return tuple(values.gather(0, view)[0] for values in found)


def closeness(near: tuple[Tensor, Tensor], real: tuple[Tensor, Tensor], count: int, mirrored: bool = False) -> dict:
    """The mean distance to the nearest of `count` training pictures, and the share of copies among the samples.

    near: the distances and ratios of samples, see `nearest`. real: those of real pictures. A sample counts as a copy if
    its nearest training picture stands out more than those of 99 % of real pictures: so do 1 % of real ones.
    """
    (apart, stands_out), (real_apart, real_stands_out) = near, real
    copies = (stands_out <= real_stands_out.quantile(0.01)).double().mean().item()
    means = {"samples": apart.mean().item(), "real": real_apart.mean().item()}
    return {"n": count, "mirrored": mirrored, **means, "copies": copies}
