"""From one picture to another, or to a changed one, through noisy versions of them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diffusion.gaussian import GaussianDiffusion, Model, check_name
from diffusion.noise import SampleNoise
from diffusion.samplers import Frame
from diffusion.sampling import sample, sample_progressive
from diffusion.spec import SampleSpec, SpecError

INTERP_MODES = ("lerp", "slerp", "ddim", "redrawn")
EDIT_MODES = ("sdedit", "ddim")


def interpolate(
    diffusion: GaussianDiffusion, model: Model, first: Tensor, second: Tensor, spec: SampleSpec, depth: int,
    lambdas: Sequence[float], seed: int, mode: str = "lerp",
) -> Iterator[Tensor]:  # fmt: skip
    """For each lambda in [0, 1], mixes the x_t of both pictures and denoises the mixture: an iterator of (B, C, H, W).

    first, second: pairs of pictures, (B, C, H, W) in [-1, 1].
    depth: training timesteps of noise (Ho et al. 2020: 500 of 1000), whatever the number of sampling steps. The
        sampler takes depth / T of its steps.
    mode:
        "lerp"     (1 - λ) x_t + λ x'_t (Ho et al. 2020, section 4.4)
        "slerp"    mixes along the sphere, which keeps the norm of two x_t of equal norm
        "ddim"     slerp between the x_t of DDIM inversion, without fresh noise (Song et al. 2021, section 5.3)
        "redrawn"  lerp with new noise for each lambda; a common mistake, kept to show its effect
    Except in "redrawn", all noise (of the two pictures and of the reverse process) is the same for every lambda, and
    the noise of pair i depends only on (seed, i).
    Raises ValueError for an unknown mode, a depth outside 1 … T, and "ddim" with a spec other than DDIM with eta 0.
    """
    check_name("interp_mode", mode, INTERP_MODES)
    spec = partial_spec(spec, depth, diffusion.timestep_num, inverted=mode == "ddim")
    return _mixtures(diffusion, model, first, second, spec, depth, lambdas, seed, mode)


def edit(
    diffusion: GaussianDiffusion, model: Model, noise: Tensor, x_start: Tensor, spec: SampleSpec, depth: int,
    generator: SampleNoise, mode: str = "sdedit",
) -> Iterator[Frame]:  # fmt: skip
    """Goes `depth` timesteps from x_start (B, C, H, W) into the noise, and back with the sampler: yields its frames.

    mode:
        "sdedit"  adds the noise, and so keeps of the picture what is coarser than this noise (Meng et al. 2022)
        "ddim"    adds none: `invert` finds the x_t that the picture comes from, and the way back returns the picture
    noise: as x_start. generator: see `sample_progressive`. The sampler takes depth / T of its steps.
    Raises ValueError for an unknown mode, and for a depth and a spec that `interpolate` would refuse.
    """
    check_name("edit_mode", mode, EDIT_MODES)
    spec = partial_spec(spec, depth, diffusion.timestep_num, inverted=mode == "ddim")
    if mode == "ddim":
        x_t = invert(diffusion, model, x_start, spec, depth)
    else:
        x_t = diffusion.q_sample(x_start, depth - 1, noise)
    return sample_progressive(diffusion, model, x_t, spec, generator, depth)


def partial_spec(spec: SampleSpec, depth: int, timestep_num: int, inverted: bool) -> SampleSpec:
    """The spec of a sampler that starts `depth` timesteps deep: with its share of the steps, rounded up.

    Raises ValueError for a depth outside 1 … timestep_num, and for one to invert that is not DDIM with eta 0.
    """
    if not 1 <= depth <= timestep_num:
        raise ValueError(f"a depth of {depth} is not between 1 and {timestep_num} timesteps")
    if inverted and (spec.method, spec.eta) != ("DDIM", 0):
        raise SpecError(f"only DDIM with eta 0 can be inverted, such as DDIM_50_0p0, and not {spec}")
    return replace(spec, steps=-(-spec.steps * depth // timestep_num))


def _mixtures(diffusion, model, first, second, spec, depth, lambdas, seed, mode) -> Iterator[Tensor]:
    """The work of `interpolate`, apart from its checks: a generator would run those only at its first item."""
    if mode == "ddim":
        ends = [invert(diffusion, model, x, spec, depth) for x in (first, second)]
    for k, lam in enumerate(lambdas):
        pairs = range(len(first)) if mode != "redrawn" else range(k * len(first), (k + 1) * len(first))
        source = SampleNoise(seed, pairs)
        if mode != "ddim":
            ends = [diffusion.q_sample(x, depth - 1, source.draw(x.shape, x.dtype, x.device)) for x in (first, second)]
        mixed = (torch.lerp if mode in ("lerp", "redrawn") else slerp)(*ends, lam)
        yield sample(diffusion, model, mixed, spec, source, depth)


def slerp(first: Tensor, second: Tensor, lam: float) -> Tensor:
    """(sin((1-λ)θ) x + sin(λθ) x') / sin θ, with θ the angle between the two pictures of a pair (Shoemake 1985)."""
    a, b = (x.flatten(1) / x.flatten(1).norm(dim=1, keepdim=True) for x in (first, second))
    # atan2 keeps θ accurate where both pictures are nearly the same, unlike the arc cosine of a · b
    theta = 2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1)).clamp(1e-6, torch.pi - 1e-3)
    theta = theta.view(-1, *[1] * (first.ndim - 1))
    return (((1 - lam) * theta).sin() * first + (lam * theta).sin() * second) / theta.sin()


@torch.inference_mode()
def invert(diffusion: GaussianDiffusion, model: Model, x_start: Tensor, spec: SampleSpec, depth: int) -> Tensor:
    """DDIM inversion: the x_t, `depth` timesteps deep, from which DDIM with eta 0 returns to x_start. (B, C, H, W).

    It runs DDIM's steps upwards. A step down uses the noise predicted at its upper end, which is unknown on the way up;
    the prediction at its lower end replaces it (Song et al. 2021, section 4.3). The error therefore vanishes in the
    limit of many steps. For the first step, from x_0, the noise is predicted at t = 0.
    """
    x_t, timesteps = x_start, spec.timesteps(depth)
    for t, t_next in zip([-1, *timesteps[:-1]], timesteps, strict=True):
        pred_x_start = diffusion.predict(model, x_t, max(t, 0))
        pred_noise = diffusion.predict_noise(pred_x_start, x_t, max(t, 0))
        x_t = diffusion.q_sample(x_start if t < 0 else pred_x_start, t_next, pred_noise)
    return x_t
