"""The optimizer step: its learning rate, and what happens when a loss or gradient is not finite."""

import math

import torch
from torch import Tensor, nn


def make_optimizer(model: nn.Module, recipe: dict) -> torch.optim.Adam:
    """Adam as one fused kernel."""
    betas = (recipe["Adam_beta1"], recipe["Adam_beta2"])
    return torch.optim.Adam(model.parameters(), lr=recipe["learning_rate"], betas=betas, fused=True)


def learning_rate(recipe: dict, step: int, steps: int) -> float:
    """The learning rate of optimizer step `step`, from 0, of `steps`.

    It rises linearly over warmup_steps, then stays constant or, with lr_schedule "cosine", falls along half a cosine to
    0 after the last step.
    """
    warmup = min(recipe["warmup_steps"], steps)
    if step < warmup:
        return recipe["learning_rate"] * (step + 1) / warmup
    if recipe["lr_schedule"] == "constant":
        return recipe["learning_rate"]
    return recipe["learning_rate"] * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def backward(loss: Tensor) -> None:
    """loss.backward(), with NaN gradients if the loss is not finite.

    (The gradient of an infinite L1 loss would be ±1.) The norm of the gradient, which all processes share, then shows a
    bad loss of any process.
    """
    loss.backward(torch.where(loss.detach().isfinite(), 1.0, torch.nan).to(loss.dtype))


def update(optimizer: torch.optim.Adam, rate: float, grad_clip: float | None) -> tuple[Tensor, Tensor]:
    """One step with the current gradients, clipped to a norm of grad_clip. Returns (norm, taken), both ().

    A gradient that is not finite changes neither the weights nor Adam's state, and `taken` is False. This is decided on
    the device, by the found_inf switch that the fused kernel has for gradient scalers, so nothing waits for it.
    """
    (group,) = optimizer.param_groups
    weights, group["lr"] = group["params"], rate
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights])
    if grad_clip is not None:
        torch.nn.utils.clip_grads_with_norm_(weights, grad_clip, norm)
    taken = norm.isfinite()
    optimizer.grad_scale, optimizer.found_inf = None, 1 - taken.float()
    optimizer.step()
    return norm, taken
