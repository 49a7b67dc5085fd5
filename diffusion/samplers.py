"""Samplers: from x_T, pure noise, to x_0 in a few of the T timesteps.

A sampler is a generator function that yields a `Frame` after each step. To add one, copy a sampler below, change it
and enter it in SAMPLERS: that makes its name valid in every --sample_info.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from diffusion.gaussian import GaussianDiffusion, Model


@dataclass(frozen=True)
class Frame:
    """One step of a sampler: at x_t the network predicted pred_x_start, and the step led to sample = x_{t_prev}.

    Both are (B, C, H, W); pred_x_start is clipped to [-1, 1] if the diffusion clips.
    """

    t: int
    sample: Tensor
    pred_x_start: Tensor


Draw = Callable[[Tensor], Tensor]  # x -> standard normal noise of the same shape
Steps = list[tuple[int, int]]  # (t, t_prev) of each step, t descending; the last t_prev is -1, which is x_0


def ddpm(diffusion: GaussianDiffusion, model: Model, x_t: Tensor, steps: Steps, eta: float, draw: Draw, large=False):
    """Ancestral sampling: x_{t_prev} ~ q(x_{t_prev} | x_t, pred_x_start) (Ho et al. 2020, eq. 6 and 7).

    The posterior is the one of the step that is taken (Nichol & Dhariwal 2021, section 4); eta is ignored.
    large: with the variance β of that step in place of β̃, the smaller one (Ho et al. 2020, section 3.2).
    """
    for t, t_prev in steps:
        pred_x_start = diffusion.predict(model, x_t, t)
        mean, variance = diffusion.q_posterior(pred_x_start, x_t, t, t_prev)
        if large and t_prev >= 0:
            variance = 1 - diffusion.alpha_bar(t) / diffusion.alpha_bar(t_prev)
        x_t = _with_noise(mean, variance, draw)
        yield Frame(t, x_t, pred_x_start)


def naive_ddpm(diffusion: GaussianDiffusion, model: Model, x_t: Tensor, steps: Steps, eta: float, draw: Draw):
    """A common mistake, kept to show its effect: each step uses the posterior from t to t - 1, however far it goes.

    The result is then taken for x_{t_prev}. So the noise of the skipped timesteps stays in the picture, and the last
    step stops short of x_0. eta is ignored.
    """
    return ddpm(diffusion, model, x_t, [(t, t - 1) for t, _ in steps], eta, draw)


def ddim(diffusion: GaussianDiffusion, model: Model, x_t: Tensor, steps: Steps, eta: float, draw: Draw):
    """Song et al. 2021, eq. 12 and 16: x_{t_prev} = sqrt(ᾱ_prev) x_0 + sqrt(1 - ᾱ_prev - σ²) ε + σ z.

    ε is the noise that leads from pred_x_start to x_t; see `ddim_step`.
    """
    for t, t_prev in steps:
        pred_x_start = diffusion.predict(model, x_t, t)
        x_t = ddim_step(diffusion, pred_x_start, x_t, t, t_prev, eta, draw)
        yield Frame(t, x_t, pred_x_start)


def dpmpp(diffusion: GaussianDiffusion, model: Model, x_t: Tensor, steps: Steps, eta: float, draw: Draw):
    """DPM-Solver++(2M) for eta 0 and SDE-DPM-Solver++(2M) for eta 1 (Lu et al. 2022b, algorithm 2).

    It is DDIM with a better x_start: the one in the middle of the step in log-SNR, extrapolated from the last two
    predictions. The first step has only one prediction. The last step ends at x_0, where log-SNR is infinite, so it
    is first order too.
    """
    last = None
    for t, t_prev in steps:
        pred_x_start = x_start = diffusion.predict(model, x_t, t)
        if last and t_prev >= 0:
            x_start = x_start + second_order(diffusion, last.t, t, t_prev) * (x_start - last.pred_x_start)
        x_t = ddim_step(diffusion, x_start, x_t, t, t_prev, eta, draw)
        last = Frame(t, x_t, pred_x_start)
        yield last


def unipc(diffusion: GaussianDiffusion, model: Model, x_t: Tensor, steps: Steps, eta: float, draw: Draw):
    """UniPC of order 2 for predictions of x_start, with B(h) = e^h - 1 (Zhao et al. 2023): DPM-Solver++(2M), corrected.

    The network call at the end of a step also corrects that step: it is taken again, with the x_start of `corrected`.
    This costs no call of its own. The last step, to x_0, is not corrected; eta is ignored.
    """
    known, x_last = [], x_t  # the last two frames, newest first; x before the last step
    for t, t_prev in steps:
        pred_x_start = x_start = diffusion.predict(model, x_t, t)
        if known:
            last = known[0]
            x_t = ddim_step(diffusion, corrected(diffusion, t, pred_x_start, *known), x_last, last.t, t, 0.0, draw)
            if t_prev >= 0:
                x_start = x_start + second_order(diffusion, last.t, t, t_prev) * (x_start - last.pred_x_start)
        x_last = x_t
        x_t = ddim_step(diffusion, x_start, x_t, t, t_prev, 0.0, draw)
        known = [Frame(t, x_t, pred_x_start), *known[:1]]
        yield known[0]


SAMPLERS = {"DDPM": ddpm, "NaiveDDPM": naive_ddpm, "DDIM": ddim, "DPMpp": dpmpp, "UniPC": unipc}
SAMPLERS["DDPMlarge"] = partial(ddpm, large=True)
USES_ETA = {"DDIM", "DPMpp"}  # the others ignore it


def ddim_step(
    diffusion: GaussianDiffusion, x_start: Tensor, x_t: Tensor, t: int, t_prev: int, eta: float, draw: Draw
) -> Tensor:
    """x_{t_prev} of one DDIM step.

    With ε = (x_t - sqrt(ᾱ_t) x_0) / sqrt(1 - ᾱ_t) put in, the step is x_{t_prev} = a x_t + b x_0 + σ z.
    """
    ac, ac_prev = diffusion.alpha_bar(t), diffusion.alpha_bar(t_prev)
    variance = eta**2 * (1 - ac_prev) / (1 - ac) * (1 - ac / ac_prev)
    of_x_t = (max(0.0, 1 - ac_prev - variance) / (1 - ac)) ** 0.5
    of_x_start = ac_prev**0.5 - of_x_t * ac**0.5
    return _with_noise(of_x_t * x_t + of_x_start * x_start, variance, draw)


def second_order(diffusion: GaussianDiffusion, t_last: int, t: int, t_prev: int) -> float:
    """How far DPM-Solver++(2M) extrapolates x_start: h / (2 h_last), half of this step over the last one.

    h is measured in λ = ln sqrt(ᾱ / (1 - ᾱ)). With cosine betas λ starts near -10 and the first step is by far the
    longest, so h / h_last is small after it, and x_start is clipped: the noisy end needs no further care.
    """
    last, now, then = (diffusion.log_snr(i) for i in (t_last, t, t_prev))  # 2 λ, which gives the same ratio
    return (then - now) / (2 * (now - last))


def corrected(diffusion: GaussianDiffusion, t: int, x_end: Tensor, start: Frame, before: Frame | None = None) -> Tensor:
    """The x_start (B, C, H, W) of a step that ends at t, from the predictions there, at its start and one step before.

    It is the mean of the parabola through the three predictions, weighted as the exact solution of the step weights
    x_start: by e^{hu}, with u from 0 to 1 along the step in λ and h its length. Without a step before, the mean of the
    line; the authors' code takes it halfway there, but with cosine betas the end has 7/8 of the weight (h is about 8).
    """
    x_start, lam_start, lam_end = start.pred_x_start, diffusion.log_snr(start.t) / 2, diffusion.log_snr(t) / 2
    h, to_end = lam_end - lam_start, x_end - x_start
    mean = 1 / -math.expm1(-h) - 1 / h  # of u
    if before is None:
        return x_start + mean * to_end
    of_square = 1 / -math.expm1(-h) - 2 * mean / h  # the mean of u²
    u = (diffusion.log_snr(before.t) / 2 - lam_start) / h  # where the prediction before lies, below 0
    of_before = (of_square - mean) / (u * (u - 1))
    return x_start + of_before * (before.pred_x_start - x_start) + (mean - u * of_before) * to_end


def _with_noise(mean: Tensor, variance: float, draw: Draw) -> Tensor:
    return mean + variance**0.5 * draw(mean) if variance > 0 else mean
