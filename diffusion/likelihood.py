"""How well a model fits pictures of 8 bits: the variational bound on their negative log-likelihood."""

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from diffusion.gaussian import GaussianDiffusion, Model
from diffusion.noise import SampleNoise, randn_like
from diffusion.spec import SampleSpec


@torch.inference_mode()
def bound_terms(
    diffusion: GaussianDiffusion,
    model: Model,
    x_start: Tensor,
    spec: SampleSpec,
    generator: torch.Generator | SampleNoise | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """The terms of the bound on -log2 p(x_0), in bits per dimension (Ho et al. 2020, eq. 5): yields (t, float64 (B,)).

    First the prior's, with t = T, then that of the step from each t, falling; the last one is the decoder's.

        prior    KL(q(x_{T-1} | x_0) || N(0, 1))
        step     KL(q(x_s | x_t, x_0) || p(x_s | x_t)) = b² |x_0 - pred_x_start|² / 2 β̃, with b and β̃ of
                 `posterior_coefficients`, where x_t is one draw of q(x_t | x_0)
        decoder  -log p(x_0 | x_t) of the last step, see `decoder`

    p is the model that DDPM samples from: its variance is β̃, and it clips x_start if the diffusion does. The bound
    holds either way, and as pictures are in [-1, 1], clipping can only lower the terms of the steps.

    x_start: (B, C, H, W), pixels of 8 bits in [-1, 1]. spec: DDPM in 2 or more steps; if they are fewer than T, this is
    the bound of the respaced model. Raises ValueError for another spec. generator: see `sample_progressive`.
    """
    if spec.method != "DDPM" or spec.steps < 2:
        raise ValueError(f"the bound is that of DDPM in at least 2 steps, such as DDPM_1000_0p0, and not of {spec}")
    timesteps, noise = [-1, *spec.timesteps(diffusion.timestep_num)], partial(randn_like, generator=generator)
    bits = 1 / (math.log(2) * x_start[0].numel())
    signal = diffusion.alpha_bar(timesteps[-1])
    squares = x_start.square().flatten(1).mean(1).cpu().double()
    yield diffusion.timestep_num, (signal * (squares - 1) - math.log(1 - signal)) / (2 * math.log(2))
    for t, t_prev in zip(timesteps[:0:-1], timesteps[-2::-1], strict=True):
        ac = diffusion.alpha_bar(t)
        x_t = ac**0.5 * x_start + (1 - ac) ** 0.5 * noise(x_start)
        pred_x_start = diffusion.predict(model, x_t, t)
        _, of_x_start, variance = diffusion.posterior_coefficients(t, t_prev)
        if t_prev < 0:
            _, _, variance = diffusion.posterior_coefficients(timesteps[2], timesteps[1])
            yield t, -bits * decoder(x_start, pred_x_start, variance**0.5).flatten(1).sum(1)
        else:
            error = (x_start - pred_x_start).square().flatten(1).sum(1).cpu().double()
            yield t, bits * of_x_start**2 / (2 * variance) * error


def decoder(x_start: Tensor, mean: Tensor, deviation: float) -> Tensor:
    """log p(x_0 | x_t) of each pixel, in nats: float64 on the CPU (MPS has no float64), the shape of x_start.

    It is the share of N(mean, deviation²) in the pixel's bin, which is 2/255 wide; the bins of -1 and of 1 are open
    towards the outside (Ho et al. 2020, eq. 13). So the 256 levels have the probability 1 together.

    The deviation of the last step is that of the step before it, as in Ho et al.'s code: its own β̃ is 0.
    """
    x_start, mean = (x_start.cpu().double() * 127.5 + 127.5).round() / 127.5 - 1, mean.cpu().double()  # levels, exact
    flip = torch.where(x_start > mean, -1.0, 1.0)  # mirrored to the lower tail, where log Φ keeps its digits
    low, high = (flip * (x_start - mean) - 1 / 255) / deviation, (flip * (x_start - mean) + 1 / 255) / deviation
    low.masked_fill_(flip * x_start < -254 / 255, -torch.inf)
    high.masked_fill_(flip * x_start > 254 / 255, torch.inf)
    log_low, log_high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    return log_high + torch.log1p(-torch.exp(log_low - log_high))
