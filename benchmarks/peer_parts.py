"""What the peers share: a step of training, an average of the weights, and networks of other conventions in ours."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffusion import GaussianDiffusion
from utils.device import autocast

Network = Callable[[Tensor, Tensor], Tensor]
Step = Callable[[Tensor, float], None]  # of x_start and the share of the time that is over


class Called(nn.Module):
    """A function of (x, t) as a module, with the parameters of another one."""

    def __init__(self, function: Network, module: nn.Module):
        super().__init__()
        self.function, self.module = function, module

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.function(x, t)


def step_of(
    recipe: dict, loss: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, update: Callable[[], None],
    clip: float | None = None, parts: int = 1, rate_at: Callable[[int, float], float] | None = None,
) -> Step:  # fmt: skip
    """A step of training, with gradients of `parts` equal parts of the batch, clipped to the norm `clip`.

    update: averages in the new weights. rate_at: the learning rate from the number of the step and the share of time.
    """
    (group,), steps = optimizer.param_groups, 0

    def step(x_start: Tensor, done: float) -> None:
        nonlocal steps
        for part in x_start.chunk(parts):
            with autocast(recipe["precision"], x_start.device):
                value = loss(part)
            (value * len(part) / len(x_start)).backward()
        if clip:
            nn.utils.clip_grad_norm_(group["params"], clip)
        steps += 1
        if rate_at:
            group["lr"] = rate_at(steps, done)
        optimizer.step()
        optimizer.zero_grad()
        update()

    return step


def average_of(net: nn.Module, decay: Callable[[int], float]) -> tuple[nn.Module, Callable[[], None]]:
    """A moving average of the weights, and its update. decay: from the number of the step."""
    average, steps = copy.deepcopy(net).requires_grad_(False), 0

    @torch.no_grad()
    def update() -> None:
        nonlocal steps
        steps += 1
        torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 1 - decay(steps))

    return average, update


def with_groups(net: nn.Module, groups: int) -> nn.Module:
    """The network with this number of groups in each GroupNorm, where 32 are built in, made for a width of 128."""
    for module in net.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = groups
    return net


def from_flow(velocity: Network) -> tuple[Network, GaussianDiffusion]:
    """A network of x = (1 - t) noise + t picture, which predicts picture - noise, in our convention.

    With t = a / (a + σ) their x is ours, a picture + σ noise, over a + σ. Our velocity has the other sign.
    """
    diffusion = GaussianDiffusion(1000, "flow", "l2", "pred_flow")
    signal, sigma = diffusion.alphas_cumprod.sqrt(), (1 - diffusion.alphas_cumprod).sqrt()
    scale, time_of = signal + sigma, signal / (signal + sigma)

    def function(x: Tensor, t: Tensor) -> Tensor:
        return -velocity(x / scale.to(x)[t].view(-1, 1, 1, 1), time_of.to(x)[t])

    return function, diffusion


def from_exploding(noise: Network, sigmas: Tensor) -> tuple[Network, GaussianDiffusion]:
    """A network of x = picture + sigma noise and sigma (B, 1, 1, 1), which predicts the noise, in our convention.

    Ours is that x over sqrt(1 + sigma²), so that ᾱ = 1 / (1 + sigma²). sigmas: (T,), rising.
    """
    levels = 1 / (1 + sigmas.double() ** 2)
    betas = 1 - levels / torch.cat([torch.ones(1), levels[:-1]])

    def function(x: Tensor, t: Tensor) -> Tensor:
        sigma = sigmas.to(x)[t].view(-1, 1, 1, 1)
        return noise(x * (1 + sigma**2).sqrt(), sigma)

    return function, GaussianDiffusion(loss_type="l2", objective="pred_noise", betas=betas)
