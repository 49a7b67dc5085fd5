"""Samplers: walks from x_T back to x_0 over a few of the T timesteps.

Every step of every method is x_{t_prev} = a x_t + b x_start + sqrt(variance) z, with x_start what the network
predicts from x_t, z fresh noise, and three scalars that follow from the two timesteps.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.noise import SampleNoise, randn


@dataclass(frozen=True)
class Frame:
    """One step of a sampler: from x_t it predicted pred_x_start and went on to sample. Both (B, C, H, W)."""

    t: int
    sample: Tensor
    pred_x_start: Tensor


def ddpm_step(diffusion, t: int, t_prev: int, eta: float) -> tuple[float, float, float]:
    """Ancestral sampling with the posterior of the step that is taken, and its own ("small") variance
    (Ho et al. 2020, eq. 6 and 7; Nichol & Dhariwal 2021, section 4)."""
    return diffusion.posterior_coefficients(t, t_prev)


def naive_ddpm_step(diffusion, t: int, t_prev: int, eta: float) -> tuple[float, float, float]:
    """A mistake, kept to show what it does: the posterior goes from t to t - 1, and the next step takes what comes
    out for x_{t_prev}. The noise of the t - 1 - t_prev steps between stays in, and the last call stops short of x_0."""
    return diffusion.posterior_coefficients(t, t - 1)


def ddim_step(diffusion, t: int, t_prev: int, eta: float) -> tuple[float, float, float]:
    """Song et al. 2021, eq. 12 and 16: sqrt(ᾱ_prev) x_0 + sqrt(1 - ᾱ_prev - σ²) ε + σ z, with the noise ε that
    leads from x_start to x_t, ε = (x_t - sqrt(ᾱ_t) x_0) / sqrt(1 - ᾱ_t)."""
    ac, ac_prev = diffusion.alpha_bar(t), diffusion.alpha_bar(t_prev)
    variance = eta**2 * (1 - ac_prev) / (1 - ac) * (1 - ac / ac_prev)
    of_x_t = (max(0.0, 1 - ac_prev - variance) / (1 - ac)) ** 0.5
    return of_x_t, ac_prev**0.5 - of_x_t * ac**0.5, variance


# DPM-Solver++(2M) is DDIM from a better x_start: that of the step's middle in log-SNR, extrapolated from two calls.
STEPS = {"DDPM": ddpm_step, "NaiveDDPM": naive_ddpm_step, "DDIM": ddim_step, "DPMpp": ddim_step}

GRAMMAR = (
    "METHOD_STEPS_ETA, such as DDPM_1000_0p0 or DDIM_50_0p0 "
    f"({', '.join(STEPS)}; steps from 1; eta from 0p0 to 1p0, with at most three decimals; _quad after it if wanted)"
)


@dataclass(frozen=True)
class SampleSpec:
    """How to sample: "DDIM_50_0p0" is DDIM, 50 steps, eta 0.0.

    eta: scales the fresh noise's standard deviation, from 0, none, to 1, as much as DDPM's (Song et al. 2021, eq. 16).
    For DPMpp (Lu et al. 2022b) 0 is DPM-Solver++(2M), 1 SDE-DPM-Solver++(2M), and between it scales as in DDIM.
    DDPM and NaiveDDPM have no use for it.
    quad: timesteps dense near x_0 (Song et al. 2021, appendix D.2), "DDIM_50_0p0_quad", and not evenly spaced.
    """

    method: str
    steps: int
    eta: float
    quad: bool = False

    @classmethod
    def parse(cls, text: str) -> "SampleSpec":
        """Reads METHOD_STEPS_ETA; raises ValueError, which shows the grammar, for anything else."""
        match = re.fullmatch(rf"({'|'.join(STEPS)})_([1-9][0-9]{{0,5}})_([01])p([0-9]{{1,3}})(_quad)?", text)
        if not match or float(f"{match[3]}.{match[4]}") > 1:
            raise ValueError(f"sample_info {text!r} is not {GRAMMAR}")
        return cls(match[1], int(match[2]), float(f"{match[3]}.{match[4]}"), bool(match[5]))

    def __str__(self) -> str:
        return f"{self.method}_{self.steps}_{self.eta}".replace(".", "p") + "_quad" * self.quad

    def timesteps(self, depth: int) -> list[int]:
        """The timesteps to visit from `depth` training timesteps of noise down, ascending, the last depth - 1.

        Even ones are linspace(-1, depth - 1, steps + 1) rounded down, without the -1, in exact integers.
        Quadratic ones are depth (k / steps)² - 1, rounded up, for k = 1 … steps, and no two the same.
        """
        S = self.steps
        if depth < S:
            raise ValueError(f"{self} asks for {S} steps, but there are only {depth} timesteps")
        if self.quad:
            return [max(k, -(-k * k * depth // (S * S))) - 1 for k in range(1, S + 1)]
        return [k * depth // S - 1 for k in range(1, S + 1)]


@torch.inference_mode()
def sample_progressive(
    diffusion,
    model,
    noise: Tensor,
    spec: SampleSpec,
    timesteps: list[int],
    generator: torch.Generator | SampleNoise | None,
) -> Iterator[Frame]:
    """The loop that all methods share; see GaussianDiffusion.sample_progressive. timesteps are ascending."""
    x_t, last = noise, None
    for t, t_prev in reversed(list(zip(timesteps, [-1, *timesteps[:-1]], strict=True))):
        pred_x_start = x_start = diffusion.predict(model, x_t, t)
        if spec.method == "DPMpp" and last and t_prev >= 0:
            x_start = x_start + second_order(diffusion, last.t, t, t_prev) * (x_start - last.pred_x_start)
        of_x_t, of_x_start, variance = STEPS[spec.method](diffusion, t, t_prev, spec.eta)
        x_t = of_x_t * x_t + of_x_start * x_start
        if variance > 0:
            x_t = x_t + variance**0.5 * randn(generator, x_t.shape, x_t.dtype, x_t.device)
        last = Frame(t, x_t, pred_x_start)
        yield last


def second_order(diffusion, t_before: int, t: int, t_prev: int) -> float:
    """How far to extrapolate x_start: half of this step over the last one, h / (2 h_before), in the logarithm
    of the signal-to-noise ratio's root, λ = ln sqrt(ᾱ / (1 - ᾱ)) (Lu et al. 2022b, algorithm 2).

    With cosine betas λ starts near -10 and the first step is by far the longest: it is followed by a small
    h / h_before, and x_start is clipped, so that the noisy end needs no other care. At the other end λ is
    infinite at x_0: the last step cannot extrapolate, and returns x_start itself, first-order.
    """
    before, now, then = (diffusion.log_snr(i) for i in (t_before, t, t_prev))  # 2 λ: the ratio is the same
    return (then - now) / (2 * (now - before))
