"""Noise schedules: the variances β_t of the forward process, float64 tensors of shape (T,)."""

import math

import torch
from torch import Tensor

MAX_BETA = 0.999  # the cap of Improved DDPM: the last cosine beta would be 1, which leaves no signal to recover


def linear_betas(timestep_num: int) -> Tensor:
    """Ho et al. 2020: β from 1e-4 to 0.02 in equal steps for T = 1000.

    For any other T both ends are scaled by 1000 / T, so that x_T is close to pure noise for every T.
    """
    scale = 1000 / timestep_num
    betas = torch.linspace(1e-4 * scale, 0.02 * scale, timestep_num, dtype=torch.float64)
    return betas.clamp(max=MAX_BETA)


def cosine_betas(timestep_num: int, s: float = 0.008) -> Tensor:
    """Nichol & Dhariwal 2021, eq. 17: ᾱ(t) is proportional to cos²((t/T + s) / (1 + s) · π/2)."""

    def alpha_bar(i: int) -> float:
        return math.cos((i / timestep_num + s) / (1 + s) * math.pi / 2) ** 2

    betas = [1 - alpha_bar(i + 1) / alpha_bar(i) for i in range(timestep_num)]
    return torch.tensor(betas, dtype=torch.float64).clamp(max=MAX_BETA)


BETA_SCHEDULES = {"linear": linear_betas, "cosine": cosine_betas}
