"""The forward process, the training loss, and how to read a network's output as x_start and noise.

Symbols of the papers and names in the code (t counts from 0):
    β_t -> betas[t]     ᾱ_t -> alphas_cumprod[t]     x_0 -> x_start     ε -> noise
    a = sqrt(ᾱ_t) -> signal     σ = sqrt(1 - ᾱ_t) -> sigma     SNR_t = a² / σ² -> snr
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from diffusion.schedule import BETA_SCHEDULES, TIMESTEP_DENSITIES

Model = Callable[[Tensor, Tensor], Tensor]  # x_t (B, C, H, W), t int64 (B,) -> (B, C, H, W)

# What the network predicts is p x_0 + q ε: (p, q) as a function of a and σ.
OBJECTIVES = {
    "pred_noise": lambda a, sigma: (0, 1),
    "pred_x0": lambda a, sigma: (1, 0),
    "pred_v": lambda a, sigma: (-sigma, a),  # Salimans & Ho 2022
    "pred_flow": lambda a, sigma: (-1, 1),  # the velocity of rectified flow (Liu et al. 2022)
}
LOSSES = {"l1": torch.abs, "l2": torch.square}  # of the error of each pixel
LOSS_WEIGHTS = ("none", "p2", "min_snr")


class GaussianDiffusion:
    """A diffusion process of `timestep_num` steps, with all quantities that follow from its betas.

    beta_schedule: a key of BETA_SCHEDULES, such as "cosine".
    loss_type, objective: keys of LOSSES and of OBJECTIVES, such as "l2" and "pred_v".
    loss_weight: "none", "p2" (Choi et al. 2022, k = 1, γ = 1) or "min_snr" (Hang et al. 2023, γ = 5).
    clip_denoised: whether samplers clip the predicted x_start to [-1, 1].
    timestep_density: a key of TIMESTEP_DENSITIES, such as "uniform": how training draws its timesteps.
    betas: (T,), or a list, between 0 and 1; they take the place of timestep_num and beta_schedule.
    Raises ValueError for an unknown name, for timestep_num < 1 and for impossible betas.

    betas, alphas_cumprod and loss_weights are float64 tensors of shape (T,).
    """

    def __init__(
        self, timestep_num: int = 1000, beta_schedule: str = "cosine", loss_type: str = "l1",
        objective: str = "pred_noise", loss_weight: str = "none", clip_denoised: bool = True,
        timestep_density: str = "uniform", betas: Tensor | Sequence[float] | None = None,
    ):  # fmt: skip
        check_name("beta_schedule", beta_schedule, BETA_SCHEDULES)
        check_name("loss_type", loss_type, LOSSES)
        check_name("objective", objective, OBJECTIVES)
        check_name("loss_weight", loss_weight, LOSS_WEIGHTS)
        check_name("timestep_density", timestep_density, TIMESTEP_DENSITIES)
        if timestep_num < 1:
            raise ValueError(f"timestep_num must be at least 1, not {timestep_num}")
        betas = BETA_SCHEDULES[beta_schedule](timestep_num) if betas is None else betas
        self.betas = torch.as_tensor(betas, dtype=torch.float64)
        if self.betas.ndim != 1 or not len(self.betas) or not ((self.betas > 0) & (self.betas < 1)).all():
            raise ValueError("betas must be a tensor (T,) of values between 0 and 1")
        self.timestep_num, self.timestep_density = len(self.betas), timestep_density
        self.loss_type, self.objective, self.clip_denoised = loss_type, objective, clip_denoised
        self.alphas_cumprod = torch.cumprod(1 - self.betas, dim=0)
        signal, sigma = self.alphas_cumprod.sqrt(), (1 - self.alphas_cumprod).sqrt()
        p, q = (coefficient + 0 * sigma for coefficient in OBJECTIVES[objective](signal, sigma))
        divisor, self._q_is_0 = q * signal - p * sigma, not q.any()
        self._table = torch.stack([signal, sigma, p, q, divisor])
        self._rows = self._table.T.tolist()  # Python floats: samplers read them without a device sync
        self._alpha_bars = self.alphas_cumprod.tolist()
        self.loss_weights = loss_weights_of(loss_weight, self.alphas_cumprod, sigma / divisor)

    def to(self, device: torch.device | str) -> "GaussianDiffusion":
        """Moves the tables to a device, so that training does not copy them in every step. Returns self.

        On MPS, which has no float64, they become float32, after they have been computed in float64.
        """
        dtype = torch.float32 if torch.device(device).type == "mps" else torch.float64
        for name in ("betas", "alphas_cumprod", "loss_weights", "_table"):
            setattr(self, name, getattr(self, name).to(dtype).to(device))
        return self

    def draw_timesteps(self, count: int, generator: torch.Generator, progress: float = 0.0) -> Tensor:
        """The timesteps of a training step: int64 (count,), on the device of the generator.

        progress: the share of the training that was before this step, from 0 to 1.
        """
        return TIMESTEP_DENSITIES[self.timestep_density](count, self.timestep_num, generator, progress)

    def q_sample(self, x_start: Tensor, t: Tensor | int, noise: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0) = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε  (Ho et al. 2020, eq. 4).

        x_start, noise and the result: (B, C, H, W); t: int64 (B,), or one int for all.
        """
        signal, sigma, *_ = self._coefficients(t, x_start)
        return signal * x_start + sigma * noise

    def training_losses(self, model: Model, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The weighted loss of each picture, averaged over C, H, W: (B,).

        x_start: (B, C, H, W) in [-1, 1]; noise: the same shape; t: int64 (B,).
        """
        signal, sigma, p, q, _ = self._coefficients(t, x_start)
        output = model(signal * x_start + sigma * noise, t).to(x_start.dtype)
        loss = LOSSES[self.loss_type](output - (p * x_start + q * noise))
        return loss.flatten(1).mean(1) * self.loss_weights.to(t.device)[t].to(x_start.dtype)

    def predict_x_start(self, output: Tensor, x_t: Tensor, t: Tensor | int) -> Tensor:
        """x_start from the network's output at x_t, clipped if clip_denoised. t: (B,), or one int for all."""
        pred_x_start = self.x_start_of(output, x_t, t)
        return pred_x_start.clamp(-1, 1) if self.clip_denoised else pred_x_start

    def x_start_of(self, output: Tensor, x_t: Tensor, t: Tensor | int) -> Tensor:
        """The same, never clipped.

        From output = p x_0 + q ε and x_t = a x_0 + σ ε follows x_0 = (q x_t - σ output) / (q a - p σ).
        """
        _, sigma, p, q, divisor = self._coefficients(t, x_t)
        return output / p if self._q_is_0 else (q * x_t - sigma * output) / divisor

    def predict_noise(self, pred_x_start: Tensor, x_t: Tensor, t: Tensor | int) -> Tensor:
        """The noise that takes a (clipped) x_start to x_t: ε = (x_t - sqrt(ᾱ_t) x_0) / sqrt(1 - ᾱ_t)."""
        signal, sigma, *_ = self._coefficients(t, x_t)
        return (x_t - signal * pred_x_start) / sigma

    def predict(self, model: Model, x_t: Tensor, t: int) -> Tensor:
        """pred_x_start (B, C, H, W) from one network call, with every picture at timestep t."""
        ts = torch.full((len(x_t),), t, device=x_t.device)
        return self.predict_x_start(model(x_t, ts).to(x_t.dtype), x_t, t)

    def posterior_coefficients(self, t: int, t_prev: int) -> tuple[float, float, float]:
        """(a, b, variance) of q(x_{t_prev} | x_t, x_0) = N(a x_t + b x_0, variance); t_prev = -1 means x_0.

        Ho et al. 2020, eq. 6 and 7, with the β of the step that is taken, β = 1 - ᾱ_t / ᾱ_{t_prev}
        (Nichol & Dhariwal 2021, section 4). For t_prev = t - 1 this β is betas[t].
        """
        ac, ac_prev = self.alpha_bar(t), self.alpha_bar(t_prev)
        beta = 1 - ac / ac_prev
        of_x_t = (1 - beta) ** 0.5 * (1 - ac_prev) / (1 - ac)
        return of_x_t, ac_prev**0.5 * beta / (1 - ac), beta * (1 - ac_prev) / (1 - ac)

    def q_posterior(self, x_start: Tensor, x_t: Tensor, t: int, t_prev: int) -> tuple[Tensor, float]:
        """Mean (B, C, H, W) and variance of q(x_{t_prev} | x_t, x_0), from `posterior_coefficients`."""
        of_x_t, of_x_start, variance = self.posterior_coefficients(t, t_prev)
        return of_x_t * x_t + of_x_start * x_start, variance

    def alpha_bar(self, t: int) -> float:
        """ᾱ_t; 1 at t = -1, where there is no noise."""
        return self._alpha_bars[t] if t >= 0 else 1.0

    def log_snr(self, t: int) -> float:
        """ln(ᾱ_t / (1 - ᾱ_t)) at a timestep t >= 0."""
        ac = self.alpha_bar(t)
        return math.log(ac / (1 - ac))

    def _coefficients(self, t: Tensor | int, like: Tensor) -> Iterable[Tensor] | Iterable[float]:
        """a, σ, p, q, q a - p σ: each (B, 1, 1, 1) in the dtype of `like`, or a float where t is an int."""
        if isinstance(t, int):
            return self._rows[t]
        return self._table.to(t.device)[:, t].view(5, -1, *[1] * (like.ndim - 1)).to(like.dtype)


def loss_weights_of(name: str, alphas_cumprod: Tensor, gain: Tensor) -> Tensor:
    """Weights (T,) for the squared error of the output. gain (T,): σ / (q a - p σ), x_start's error over the output's.

    The papers weight the error of x_start: P2 by SNR / (1 + SNR), min-SNR by min(SNR, 5). Times gain² this is the same
    L2 loss for every objective. (The L1 loss uses the same weights, but there the losses of the objectives differ.)
    """
    if name == "none":
        return torch.ones_like(alphas_cumprod)
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return (snr / (1 + snr) if name == "p2" else snr.clamp(max=5)) * gain**2


def check_name(what: str, name: str, allowed: Iterable[str]) -> None:
    """ValueError, with the names that there are, for an unknown one."""
    if name not in allowed:
        raise ValueError(f"{what} must be one of {', '.join(allowed)}, not {name!r}")
