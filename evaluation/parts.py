"""Working through many pictures, or their features, in little memory."""

from collections.abc import Iterator

import torch
from torch import Tensor


def in_parts(rows: Tensor, values: int = 1 << 24, most: int = 2048) -> Iterator[slice]:
    """Cuts (N, …) into slices of at most `most` rows and, unless one row alone has more, at most `values` numbers.

    The default is 64 MiB as float32, and 16 MiB for the distances between two parts.
    """
    step = max(1, min(most, values // rows.shape[1:].numel()))
    return (slice(start, start + step) for start in range(0, len(rows), step))


def shuffled(count: int) -> Tensor:
    """The numbers 0 to count - 1 in random order, the same in every call: int64 (count,)."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))
