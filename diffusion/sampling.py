"""Runs a sampler, as a `SampleSpec` describes it."""

from collections import deque
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from diffusion.gaussian import GaussianDiffusion, Model
from diffusion.noise import Source, randn_like
from diffusion.samplers import SAMPLERS, Frame
from diffusion.spec import SampleSpec


@torch.inference_mode()
def sample_progressive(
    diffusion: GaussianDiffusion, model: Model, x_T: Tensor, spec: SampleSpec, generator: Source = None,
    depth: int | None = None,
) -> Iterator[Frame]:  # fmt: skip
    """Yields a `Frame` after each step of the sampler; the sample of the last one is the result.

    x_T: (B, C, H, W), pure noise; with `depth`, the x_t after that many training timesteps of noise.
    generator: the source of the noise of the reverse process, see `randn_like`. With a SampleNoise a sample does not
        depend on the rest of its batch.
    Raises ValueError if the spec has more steps than there are timesteps.
    """
    timesteps = spec.timesteps(diffusion.timestep_num if depth is None else depth)
    steps = list(zip(timesteps, [-1, *timesteps[:-1]], strict=True))[::-1]
    draw = partial(randn_like, generator=generator)
    yield from SAMPLERS[spec.method](diffusion, model, x_T, steps, spec.eta, draw)


def sample(
    diffusion: GaussianDiffusion, model: Model, x_T: Tensor, spec: SampleSpec, generator: Source = None,
    depth: int | None = None,
) -> Tensor:  # fmt: skip
    """The result of `sample_progressive`: (B, C, H, W), in [-1, 1] if the diffusion clips."""
    return deque(sample_progressive(diffusion, model, x_T, spec, generator, depth), maxlen=1).pop().sample
