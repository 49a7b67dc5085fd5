"""Noise for the samplers: from a torch.Generator, or from one stream per sample."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


class SampleNoise:
    """Standard normal noise in which draw k of sample i depends only on (seed, i, k).

    Sample 7 is therefore the same picture in a batch of 1 or of 64, in another process or on another device. Samplers
    accept it in place of a torch.Generator: row j of a batch draws from the stream of indices[j], and rows with the
    same index draw the same noise.

    (torch's CPU generator uses only 32 bits of its seed: with one seed per sample, 50,000 samples would contain two
    identical ones with a probability of about 1 in 4.)
    """

    def __init__(self, seed: int, indices: Iterable[int]):
        # The index comes first: NumPy splits seeds into 32-bit words, and (i, seed) is unique for any seed and i < 2³².
        self._streams = [np.random.default_rng((i, seed)) for i in indices]

    def draw(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """The next draw: shape (B, …) with B the number of indices; float32 or float64."""
        if shape[0] != len(self._streams):
            raise ValueError(f"this noise is for {len(self._streams)} samples, not for a batch of {shape[0]}")
        device = torch.device(device)
        noise = torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")  # pinned: an asynchronous copy
        for stream, row in zip(self._streams, noise.numpy(), strict=True):
            stream.standard_normal(out=row, dtype=row.dtype)
        return noise.to(device, non_blocking=True)


Source = torch.Generator | SampleNoise | None  # of noise, see `randn_like`


def randn_like(x: Tensor, generator: Source) -> Tensor:
    """Standard normal noise with the shape, dtype and device of x.

    generator: a SampleNoise, a torch.Generator (which draws on its own device), or None for torch's global generator.
    """
    if isinstance(generator, SampleNoise):
        return generator.draw(x.shape, x.dtype, x.device)
    device = generator.device if generator else x.device
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)
