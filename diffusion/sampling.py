"""Samplers: walks from x_T back to x_0 over a few of the T timesteps."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

GRAMMAR = (
    "METHOD_STEPS_ETA, such as DDPM_1000_0p0 or DDIM_50_0p0 "
    "(DDPM or DDIM; steps from 1; eta from 0p0 to 1p0, with at most three decimals)"
)


@dataclass(frozen=True)
class SampleSpec:
    """How to sample: "DDIM_50_0p0" is DDIM (Song et al. 2021), 50 steps, eta 0.0. DDPM has no use for its eta."""

    method: str
    steps: int
    eta: float

    @classmethod
    def parse(cls, text: str) -> "SampleSpec":
        """Reads METHOD_STEPS_ETA; raises ValueError, which shows the grammar, for anything else."""
        match = re.fullmatch(r"(DDPM|DDIM)_([1-9][0-9]{0,5})_([01])p([0-9]{1,3})", text)
        if not match or float(f"{match[3]}.{match[4]}") > 1:
            raise ValueError(f"sample_info {text!r} is not {GRAMMAR}")
        return cls(match[1], int(match[2]), float(f"{match[3]}.{match[4]}"))

    def __str__(self) -> str:
        return f"{self.method}_{self.steps}_{self.eta}".replace(".", "p")

    def timesteps(self, depth: int) -> list[int]:
        """The timesteps to visit from `depth` training timesteps of noise down, ascending, the last depth - 1.

        They are linspace(-1, depth - 1, steps + 1) rounded down, without the -1, in exact integers.
        """
        if self.steps > depth:
            raise ValueError(f"{self} asks for {self.steps} steps, but there are only {depth} timesteps")
        return [(k * depth) // self.steps - 1 for k in range(1, self.steps + 1)]


@dataclass(frozen=True)
class Frame:
    """One step of a sampler: from x_t it predicted pred_x_start and went on to sample. Both (B, C, H, W)."""

    t: int
    sample: Tensor
    pred_x_start: Tensor


@torch.no_grad()
def sample_progressive(diffusion, model, noise, spec, generator, depth) -> Iterator[Frame]:
    """The loop that all methods share; see GaussianDiffusion.sample_progressive."""
    step = {"DDPM": ddpm_step, "DDIM": ddim_step}[spec.method]
    timesteps = spec.timesteps(depth)
    x_t = noise
    for t, t_prev in reversed(list(zip(timesteps, [-1, *timesteps[:-1]], strict=True))):
        pred_x_start, pred_noise = diffusion.predict(model, x_t, t)
        mean, variance = step(diffusion, x_t, pred_x_start, pred_noise, t, t_prev, spec.eta)
        x_t = mean
        if variance > 0:
            device = generator.device if generator else x_t.device
            fresh = torch.randn(x_t.shape, generator=generator, device=device, dtype=x_t.dtype)
            x_t = mean + variance.sqrt() * fresh.to(x_t.device)
        yield Frame(t, x_t, pred_x_start)


def ddpm_step(diffusion, x_t, pred_x_start, pred_noise, t, t_prev, eta) -> tuple[Tensor, Tensor]:
    """Ancestral sampling with the posterior's own ("small") variance (Ho et al. 2020, eq. 6 and 7)."""
    return diffusion.q_posterior(pred_x_start, x_t, t, t_prev)


def ddim_step(diffusion, x_t, pred_x_start, pred_noise, t, t_prev, eta) -> tuple[Tensor, Tensor]:
    """Song et al. 2021, eq. 12 and 16: sqrt(ᾱ_prev) x_0 + sqrt(1 - ᾱ_prev - σ²) ε, and its variance σ²."""
    ac, ac_prev = diffusion.alpha_bar(t), diffusion.alpha_bar(t_prev)
    variance = eta**2 * (1 - ac_prev) / (1 - ac) * (1 - ac / ac_prev)
    mean = ac_prev.sqrt() * pred_x_start + (1 - ac_prev - variance).clamp(min=0).sqrt() * pred_noise
    return mean, variance
