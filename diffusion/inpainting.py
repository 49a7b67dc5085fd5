"""Filling a hole in a picture with an unconditional network: RePaint (Lugmayr et al. 2022)."""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from diffusion.gaussian import GaussianDiffusion, Model
from diffusion.noise import Source, randn_like
from diffusion.samplers import Frame, ddim_step
from diffusion.spec import SampleSpec, SpecError


def repaint(
    diffusion: GaussianDiffusion, model: Model, noise: Tensor, x_start: Tensor, hole: Tensor, spec: SampleSpec,
    generator: Source = None, jump_length: int | None = None, resamplings: int = 5,
) -> Iterator[Frame]:  # fmt: skip
    """Yields a `Frame` after each network call; the sample of the last one is x_start with its hole filled.

    noise: x_T, (B, C, H, W). x_start: the pictures, the same shape; outside the hole they come back exactly.
    hole: bool, True where a picture is filled; its shape broadcasts to that of x_start.
    spec: DDPM, or DDIM with any eta. generator: see `sample_progressive`.
    jump_length, resamplings: see `way`. With 1 resampling only the known part is replaced in each step.
    Raises ValueError for another method, and for more steps than timesteps.
    """
    check_repaint(spec)
    path = way(spec.timesteps(diffusion.timestep_num), jump_length, resamplings)
    eta = 1.0 if spec.method == "DDPM" else spec.eta  # DDIM with eta 1 is DDPM
    return _walk(diffusion, model, noise, x_start, hole, path, eta, partial(randn_like, generator=generator))


def check_repaint(spec: SampleSpec) -> None:
    """SpecError for a sampler that RePaint cannot use."""
    if spec.method not in ("DDPM", "DDIM"):
        raise SpecError(f"inpainting jumps between the steps of DDPM or DDIM, such as DDPM_50_0p0, and not of {spec}")


@torch.inference_mode()
def _walk(diffusion, model, x_t, x_start, hole, path, eta, draw) -> Iterator[Frame]:
    """The work of `repaint`, apart from its checks: a generator would run those only at its first item."""
    for t, t_next in pairwise(path):
        if t_next > t:  # back up: x_t ~ q(x_{t_next} | x_t), in one draw
            kept = diffusion.alpha_bar(t_next) / diffusion.alpha_bar(t)
            x_t = kept**0.5 * x_t + (1 - kept) ** 0.5 * draw(x_t)
            continue
        pred_x_start = diffusion.predict(model, x_t, t)
        unknown = ddim_step(diffusion, pred_x_start, x_t, t, t_next, eta, draw)
        known = diffusion.q_sample(x_start, t_next, draw(x_start)) if t_next >= 0 else x_start
        x_t = torch.where(hole, unknown, known)  # eq. 8
        yield Frame(t, x_t, pred_x_start)


def way(timesteps: list[int], jump_length: int | None = None, resamplings: int = 5) -> list[int]:
    """The timesteps that RePaint visits, from the last one, x_T, to -1, which is x_0.

    On its way down it stops every jump_length timesteps, jumps back to the stop before, and comes down again, until it
    has come down `resamplings` times. So the filled part and the known part, of which each step only sees noisy
    versions, have the time to agree. The network is called about len(timesteps) · resamplings times.

    timesteps: those of the sampler, ascending. jump_length: in timesteps of the training, rounded to those of the
    sampler and shortened to what there is room for; default: a 25th of them all, which is the paper's 40 of 1000.
    """
    down, last = timesteps[::-1], timesteps[-1]
    length = min(jump_length or (last + 1) // 25, last - timesteps[0])
    stops = timesteps[:1]
    while (above := [t for t in timesteps if t > stops[-1]]) and stops[-1] + length <= last:
        stops.append(min(above, key=lambda t: abs(t - stops[-1] - length)))
    path = [t for t in down if t >= stops[-1]]
    for high, low in pairwise(stops[::-1]):
        stretch = [t for t in down if low <= t < high]
        path += stretch + [high, *stretch] * (resamplings - 1)
    return [*path, -1]
