"""Between two pictures, through their noisy versions."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diffusion.gaussian import GaussianDiffusion, Model
from diffusion.noise import SampleNoise
from diffusion.sampling import SampleSpec

INTERP_MODES = ("lerp", "slerp", "ddim", "redrawn")


def interpolate(
    diffusion: GaussianDiffusion,
    model: Model,
    first: Tensor,
    second: Tensor,
    spec: SampleSpec,
    depth: int,
    lambdas: Sequence[float],
    seed: int,
    mode: str = "lerp",
) -> Iterator[Tensor]:
    """An iterator over what, for each lambda in [0, 1], the mixture of both pictures' x_t denoises to: (B, C, H, W).

    first, second: pairs of pictures, (B, C, H, W) in [-1, 1]. depth: training timesteps of noise
    (Ho et al.: 500 of 1000), whatever the number of sampling steps, of which depth/T are taken.
    mode:
        "lerp"     (1 - λ) x_t + λ x'_t (Ho et al. 2020, section 4.4)
        "slerp"    the same between directions, along the sphere: the mixture's norm is not less than its ends'
        "ddim"     x_t by DDIM inversion instead of fresh noise, mixed by slerp (Song et al. 2021, section 5.3)
        "redrawn"  lerp with other noise for each lambda, a mistake of earlier systems kept to show what it does
    But for "redrawn" all noise, that of the two pictures and that of the reverse process, is the same
    for every lambda, and that of pair i a function of (seed, i).
    Raises ValueError for an unknown mode, a depth that does not exist, and "ddim" without DDIM at eta 0.
    """
    if mode not in INTERP_MODES:
        raise ValueError(f"interp_mode must be one of {', '.join(INTERP_MODES)}, not {mode!r}")
    if not 1 <= depth <= diffusion.timestep_num:
        raise ValueError(f"a depth of {depth} is not between 1 and {diffusion.timestep_num} timesteps")
    if mode == "ddim" and (spec.method, spec.eta) != ("DDIM", 0):
        raise ValueError(f"only DDIM with eta 0 can be inverted, such as DDIM_50_0p0, and not {spec}")
    spec = replace(spec, steps=-(-spec.steps * depth // diffusion.timestep_num))  # this share of the chain, rounded up
    return _mixtures(diffusion, model, first, second, spec, depth, lambdas, seed, mode)


def _mixtures(diffusion, model, first, second, spec, depth, lambdas, seed, mode) -> Iterator[Tensor]:
    t = torch.full((len(first),), depth - 1, device=first.device)
    if mode == "ddim":
        ends = [invert(diffusion, model, x, spec, depth) for x in (first, second)]
    for k, lam in enumerate(lambdas):
        pairs = range(len(first)) if mode != "redrawn" else range(k * len(first), (k + 1) * len(first))
        noise = SampleNoise(seed, pairs)
        if mode != "ddim":
            draws = [noise.draw(x.shape, x.dtype, x.device) for x in (first, second)]
            ends = [diffusion.q_sample(x, t, draw) for x, draw in zip((first, second), draws, strict=True)]
        mixed = (torch.lerp if mode in ("lerp", "redrawn") else slerp)(*ends, lam)
        yield diffusion.sample(model, mixed, spec, noise, depth)


def slerp(first: Tensor, second: Tensor, lam: float) -> Tensor:
    """(sin((1-λ)θ) x + sin(λθ) x') / sin θ, with θ the angle between the two pictures of a pair (Shoemake 1985)."""
    a, b = (x.flatten(1) / x.flatten(1).norm(dim=1, keepdim=True) for x in (first, second))
    # in this form θ keeps its digits also where both are nearly the same
    theta = 2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1)).clamp(1e-6, torch.pi - 1e-3)
    theta = theta.view(-1, *[1] * (first.ndim - 1))
    return (((1 - lam) * theta).sin() * first + (lam * theta).sin() * second) / theta.sin()


@torch.inference_mode()
def invert(diffusion: GaussianDiffusion, model: Model, x_start: Tensor, spec: SampleSpec, depth: int) -> Tensor:
    """The x_t, `depth` timesteps deep, from which DDIM with eta 0 comes back to x_start: its steps, walked upwards.

    A step down uses the noise predicted at its upper end, which is not known on the way up; the noise predicted
    at its lower end takes its place (Song et al. 2021, section 4.3), so that the way there and back is exact in
    the limit of many steps. The noise in x_0 itself is predicted at t = 0, the nearest that the network knows.
    """
    x_t, timesteps = x_start, spec.timesteps(depth)
    for t, t_next in zip([-1, *timesteps[:-1]], timesteps, strict=True):
        pred_x_start = diffusion.predict(model, x_t, max(t, 0))
        pred_noise = diffusion.predict_noise(pred_x_start, x_t, max(t, 0))
        ac_next = diffusion.alpha_bar(t_next)
        x_t = ac_next**0.5 * (x_start if t < 0 else pred_x_start) + (1 - ac_next) ** 0.5 * pred_noise
    return x_t
