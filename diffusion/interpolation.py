"""Between two pictures, through their noisy versions (Ho et al. 2020, section 4.4)."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from diffusion.gaussian import GaussianDiffusion, Model
from diffusion.sampling import SampleSpec


def interpolate(
    diffusion: GaussianDiffusion,
    model: Model,
    first: Tensor,
    second: Tensor,
    spec: SampleSpec,
    depth: int,
    lambdas: list[float],
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Yields, for each lambda in [0, 1], the pictures that (1 - lambda) x_t + lambda x'_t denoises to.

    first, second: pairs of pictures, (B, C, H, W) in [-1, 1]. depth: training timesteps of noise
    (Ho et al.: 500 of 1000), whatever the number of sampling steps, of which depth/T are taken.
    All noise, that of the two pictures and that of the reverse process, is the same for every
    lambda: what changes from one to the next is lambda alone.
    """
    if not 1 <= depth <= diffusion.timestep_num:
        raise ValueError(f"a depth of {depth} is not between 1 and {diffusion.timestep_num} timesteps")
    steps = -(-spec.steps * depth // diffusion.timestep_num)  # this share of the chain, rounded up
    t = torch.full((len(first),), depth - 1, device=first.device)
    noisy_first, noisy_second = (
        diffusion.q_sample(x, t, torch.randn(x.shape, generator=generator, device=generator.device).to(x.device))
        for x in (first, second)
    )
    rewound = generator.get_state()
    for lam in lambdas:
        generator.set_state(rewound)
        mixed = torch.lerp(noisy_first, noisy_second, lam)
        yield diffusion.sample(model, mixed, replace(spec, steps=steps), generator, depth)
