"""Noise schedules: the variances β_t of the forward process, float64 tensors of shape (T,). And densities of timesteps:
how training draws them, int64 tensors of shape (count,), at its `progress` from 0 to 1.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

MAX_BETA = 0.999  # the cap of Improved DDPM: the last cosine beta would be 1, which leaves no signal to recover


def linear_betas(timestep_num: int) -> Tensor:
    """Ho et al. 2020: β from 1e-4 to 0.02 in equal steps for T = 1000.

    For any other T both ends are scaled by 1000 / T, so that x_T is close to pure noise for every T from 2.
    """
    scale = 1000 / timestep_num
    betas = torch.linspace(1e-4 * scale, 0.02 * scale, timestep_num, dtype=torch.float64)
    return betas.clamp(max=MAX_BETA)


def cosine_betas(timestep_num: int, s: float = 0.008) -> Tensor:
    """Nichol & Dhariwal 2021, eq. 17: ᾱ(t) is proportional to cos²((t/T + s) / (1 + s) · π/2)."""
    return betas_of(lambda time: math.cos((time + s) / (1 + s) * math.pi / 2) ** 2, timestep_num)


def flow_betas(timestep_num: int) -> Tensor:
    """Rectified flow (Liu et al. 2022), (1 - τ) x_0 + τ ε, scaled so that the squares of both factors add up to 1.

    Timestep t has the time τ = (t + 1) / T. So x_0 is at t = -1, as everywhere here, and the last timestep would be
    noise alone, but for the cap: of the picture 3e-5 is left for T = 1000.
    """
    return betas_of(lambda time: (1 - time) ** 2 / ((1 - time) ** 2 + time**2), timestep_num)


def betas_of(alpha_bar: Callable[[float], float], timestep_num: int) -> Tensor:
    """The betas of an ᾱ that is given, up to a factor, as a function of time from 0 (x_0) to 1 (noise)."""
    levels = [alpha_bar(i / timestep_num) for i in range(timestep_num + 1)]
    betas = [1 - after / before for before, after in pairwise(levels)]
    return torch.tensor(betas, dtype=torch.float64).clamp(max=MAX_BETA)


BETA_SCHEDULES = {"linear": linear_betas, "cosine": cosine_betas, "flow": flow_betas}


def uniform(count: int, timestep_num: int, generator: torch.Generator, progress: float = 0.0) -> Tensor:
    """Every timestep is equally likely (Ho et al. 2020, algorithm 1)."""
    return torch.randint(timestep_num, (count,), generator=generator, device=generator.device)


def logit_normal(count: int, timestep_num: int, generator: torch.Generator, progress: float = 0.0) -> Tensor:
    """More from the middle: the time from 0 to 1 is sigmoid(z) with z ~ N(0, 1) (Esser et al. 2024, section 3.1)."""
    time = torch.randn(count, generator=generator, device=generator.device).sigmoid()
    return (time * timestep_num).long()


def logit_normal_first(count: int, timestep_num: int, generator: torch.Generator, progress: float = 0.0) -> Tensor:
    """`logit_normal` for two thirds of a training, then `uniform`, so that it ends on the loss of all timesteps."""
    return (logit_normal if progress < 2 / 3 else uniform)(count, timestep_num, generator)


TIMESTEP_DENSITIES = {"uniform": uniform, "logit_normal": logit_normal, "logit_normal_first": logit_normal_first}
