"""Filling a hole in a picture with an unconditional network: RePaint (Lugmayr et al. 2022)."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from diffusion.gaussian import GaussianDiffusion, Model
from diffusion.noise import SampleNoise, randn_like
from diffusion.samplers import Frame, ddim_step
from diffusion.spec import SampleSpec


def repaint(
    diffusion: GaussianDiffusion,
    model: Model,
    noise: Tensor,
    x_start: Tensor,
    hole: Tensor,
    spec: SampleSpec,
    generator: torch.Generator | SampleNoise | None = None,
    jump_length: int = 10,
    resamplings: int = 5,
) -> Iterator[Frame]:
    """Yields a `Frame` after each network call; the sample of the last one is x_start with its hole filled.

    noise: x_T, (B, C, H, W). x_start: the pictures, the same shape; outside the hole they come back exactly.
    hole: bool, True where a picture is filled; its shape broadcasts to that of x_start.
    spec: DDPM, or DDIM with any eta. generator: see `sample_progressive`.
    jump_length, resamplings: see `levels`. With 1 resampling only the known part is replaced in each step.
    Raises ValueError for another method, for more steps than timesteps, and for a jump as long as all steps.
    """
    if spec.method not in ("DDPM", "DDIM"):
        raise ValueError(f"inpainting jumps between the steps of DDPM or DDIM, such as DDPM_50_0p0, and not of {spec}")
    timesteps = [-1, *spec.timesteps(diffusion.timestep_num)]
    path = [timesteps[level] for level in levels(spec.steps, jump_length, resamplings)]
    eta = 1.0 if spec.method == "DDPM" else spec.eta  # DDIM with eta 1 is DDPM
    return _walk(diffusion, model, noise, x_start, hole, path, eta, partial(randn_like, generator=generator))


@torch.inference_mode()
def _walk(diffusion, model, x_t, x_start, hole, path, eta, noise) -> Iterator[Frame]:
    """The work of `repaint`, apart from its checks: a generator would run those only at its first item."""
    for t, t_next in zip(path, path[1:], strict=False):
        if t_next > t:  # back up: x_t ~ q(x_{t_next} | x_t), in one draw
            kept = diffusion.alpha_bar(t_next) / diffusion.alpha_bar(t)
            x_t = kept**0.5 * x_t + (1 - kept) ** 0.5 * noise(x_t)
            continue
        pred_x_start = diffusion.predict(model, x_t, t)
        unknown = ddim_step(diffusion, pred_x_start, x_t, t, t_next, eta, noise)
        ac = diffusion.alpha_bar(t_next)
        known = ac**0.5 * x_start + (1 - ac) ** 0.5 * noise(x_start) if t_next >= 0 else x_start
        x_t = torch.where(hole, unknown, known)  # eq. 8
        yield Frame(t, x_t, pred_x_start)


def levels(steps: int, jump_length: int, resamplings: int) -> list[int]:
    """The noise levels that RePaint visits, from `steps` (x_T) to 0 (x_0); one step leads from a level to the next.

    On its way down it stops at every jump_length-th level, from level 1 on, jumps jump_length levels up, and comes down
    again, until it has come down `resamplings` times. So the filled part and the known part, of which each step only
    sees noisy versions, have the time to agree. The network is called about steps · resamplings times.
    Raises ValueError if there is no room for a jump.
    """
    if resamplings > 1 and jump_length >= steps:
        raise ValueError(f"jumps of {jump_length} steps need more than {jump_length} steps, not {steps}")
    left = dict.fromkeys(range(1, steps - jump_length + 1, jump_length), resamplings - 1)
    path = [steps]
    while path[-1] > 0:
        level = path[-1]
        if left.get(level):
            left[level] -= 1
            path.append(level + jump_length)
        else:
            path.append(level - 1)
    return path
