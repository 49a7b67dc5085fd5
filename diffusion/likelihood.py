"""How well a model fits pictures of 8 bits: the variational bound on their negative log-likelihood."""

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from diffusion.gaussian import GaussianDiffusion, Model
from diffusion.noise import Source, randn_like
from diffusion.spec import SampleSpec, SpecError

VARIANCES = ("small", "large", "best")


@torch.inference_mode()
def predictions(
    diffusion: GaussianDiffusion, model: Model, x_start: Tensor, spec: SampleSpec, generator: Source = None
) -> Iterator[Tensor]:
    """What the bound is computed from: yields pred_x_start of one draw of x_t, for each step of `spec`, t falling.

    x_start and pred_x_start: (B, C, H, W). spec: DDPM in 2 or more steps; if they are fewer than T, the bound is that
    of the respaced model. Raises ValueError for another spec. generator: see `sample_progressive`.
    """
    check_bound(spec)
    noise = partial(randn_like, generator=generator)
    for t in reversed(spec.timesteps(diffusion.timestep_num)):
        yield diffusion.predict(model, diffusion.q_sample(x_start, t, noise(x_start)), t)


def check_bound(spec: SampleSpec) -> None:
    """SpecError for a sampler that has no bound."""
    if spec.method != "DDPM" or spec.steps < 2:
        raise SpecError(f"the bound is that of DDPM in at least 2 steps, such as DDPM_1000_0p0, and not of {spec}")


def bound_terms(
    diffusion: GaussianDiffusion, spec: SampleSpec, x_start: Tensor, errors: Tensor, last: Tensor, variance: str
) -> Tensor:
    """The terms of the bound on -log2 p(x_0), in bits per dimension (Ho et al. 2020, eq. 5): float64 (N, S + 1).

    First the prior's, then that of the step from each t, falling; the last one is the decoder's.

        prior    KL(q(x_{T-1} | x_0) || N(0, 1))
        step     KL(q(x_s | x_t, x_0) || p(x_s | x_t)) = (ln(σ² / β̃) + (β̃ + b² |x_0 - pred_x_start|²) / σ² - 1) / 2,
                 with b and β̃ of `posterior_coefficients`
        decoder  -log p(x_0 | x_t) of the last step, see `decoder`

    The means of p are DDPM's, which clips x_start if the diffusion does. The bound holds either way, and as pictures
    are in [-1, 1], clipping can only lower the terms of the steps. σ² is

        small    β̃, that of `ddpm`
        large    β (Ho et al. 2020, section 3.2)
        best     β̃ + b² |x_0 - pred_x_start|², averaged over the other pictures (Bao et al. 2022, theorem 1): no picture
                 is measured by a number that was fitted to it. It needs two pictures or more

    and in the decoder, for small and large, β̃ of the step before, as in Ho et al.'s code: its own β̃ is 0.

    x_start: (N, C, H, W), pixels of 8 bits in [-1, 1]. errors: (N, S), |x_0 - pred_x_start|² per dimension of each
    step. last: the last pred_x_start, (N, C, H, W).
    """
    timesteps = [-1, *spec.timesteps(diffusion.timestep_num)]
    signal, squares = diffusion.alpha_bar(timesteps[-1]), x_start.double().square().flatten(1).mean(1)
    terms = [(signal * (squares - 1) - math.log(1 - signal)) / 2]
    of_others = (errors.sum(0) - errors) / (len(errors) - 1)
    for k, (t, t_prev) in enumerate(zip(timesteps[:1:-1], timesteps[-2:0:-1], strict=True)):
        _, of_x_start, small = diffusion.posterior_coefficients(t, t_prev)
        large = 1 - diffusion.alpha_bar(t) / diffusion.alpha_bar(t_prev)
        best = small + of_x_start**2 * of_others[:, k]
        chosen = torch.as_tensor({"small": small, "large": large, "best": best}[variance], dtype=torch.float64)
        terms.append(((chosen / small).log() + (small + of_x_start**2 * errors[:, k]) / chosen - 1) / 2)
    deviation = of_others[:, -1].view(-1, 1, 1, 1).clamp(min=1e-8) ** 0.5 if variance == "best" else small**0.5
    terms.append(-decoder(x_start, last, deviation).flatten(1).mean(1))
    return torch.stack(terms, 1) / math.log(2)


def decoder(x_start: Tensor, mean: Tensor, deviation: Tensor | float) -> Tensor:
    """log p(x_0 | x_t) of each pixel, in nats: float64 on the CPU (MPS has no float64), the shape of x_start.

    It is the share of N(mean, deviation²) in the pixel's bin, which is 2/255 wide; the bins of -1 and of 1 are open
    towards the outside (Ho et al. 2020, eq. 13). So the 256 levels have the probability 1 together.
    """
    x_start, mean = (x_start.cpu().double() * 127.5 + 127.5).round() / 127.5 - 1, mean.cpu().double()  # levels, exact
    flip = torch.where(x_start > mean, -1.0, 1.0)  # mirrored to the lower tail, where log Φ keeps its digits
    low, high = (flip * (x_start - mean) - 1 / 255) / deviation, (flip * (x_start - mean) + 1 / 255) / deviation
    low.masked_fill_(flip * x_start < -254 / 255, -torch.inf)
    high.masked_fill_(flip * x_start > 254 / 255, torch.inf)
    log_low, log_high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    return log_high + torch.log1p(-torch.exp(log_low - log_high))
