"""The samplers' noise: from a torch.Generator, or sample by sample, so that a batch's size does not matter."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


class SampleNoise:
    """Standard normal noise in which the k-th draw of sample i is a function of (seed, i, k) alone.

    So sample 7 is the same picture in a batch of 1, of 64, on another process or another device. Stands
    wherever the samplers take a generator; row j of a batch draws from the stream of indices[j], and two
    rows of the same index draw the same. (torch's own CPU generator keeps 32 bits of its seed: among
    50,000 samples two would be twins more often than one time in four.)
    """

    def __init__(self, seed: int, indices: Iterable[int]):
        # the index first: as words of 32 bits, (i, seed) are told apart for any seed and i < 2³²
        self._streams = [np.random.default_rng((i, seed)) for i in indices]

    def draw(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """The next draw: shape (B, …) with B the number of indices, float32 or float64."""
        if shape[0] != len(self._streams):
            raise ValueError(f"noise for {len(self._streams)} samples was asked for a batch of {shape[0]}")
        device = torch.device(device)
        noise = torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")  # pinned: the copy does not wait
        for stream, row in zip(self._streams, noise.numpy(), strict=True):
            stream.standard_normal(out=row, dtype=row.dtype)
        return noise.to(device, non_blocking=True)


def randn(generator: torch.Generator | SampleNoise | None, shape, dtype: torch.dtype, device) -> Tensor:
    """Noise on `device` from a SampleNoise, a torch.Generator (drawn on its own device) or torch's global one."""
    if isinstance(generator, SampleNoise):
        return generator.draw(shape, dtype, device)
    source = generator.device if generator else device
    return torch.randn(shape, generator=generator, dtype=dtype, device=source).to(device)
