"""The optimizer's step: its learning rate, and what happens when the numbers go wrong."""

import math

import torch
from torch import Tensor, nn

LR_SCHEDULES = ("constant", "cosine")


def make_optimizer(model: nn.Module, recipe: dict) -> torch.optim.Adam:
    """Adam in one fused kernel."""
    betas = (recipe["Adam_beta1"], recipe["Adam_beta2"])
    return torch.optim.Adam(model.parameters(), lr=recipe["learning_rate"], betas=betas, fused=True)


def learning_rate(recipe: dict, step: int, steps: int) -> float:
    """That of optimizer step `step`, from 0, of `steps`: up in warmup_steps equal steps, then constant or, with
    lr_schedule "cosine", half a cosine down to 0 after the last step."""
    warmup = min(recipe["warmup_steps"], steps)
    if step < warmup:
        return recipe["learning_rate"] * (step + 1) / warmup
    if recipe["lr_schedule"] == "constant":
        return recipe["learning_rate"]
    return recipe["learning_rate"] * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def backward(loss: Tensor) -> None:
    """loss.backward(), with gradients that are not finite wherever the loss is not. (An infinite L1 loss has a gradient
    of ±1.) So the norm of the gradient, which all processes share, tells of each one's loss too."""
    loss.backward(torch.where(loss.detach().isfinite(), 1.0, torch.nan).to(loss.dtype))


def update(optimizer: torch.optim.Adam, rate: float, grad_clip: float | None) -> tuple[Tensor, Tensor]:
    """One step with the gradients as they are, clipped to a norm of grad_clip: (their norm, whether it was taken), ().

    A gradient that is not finite changes neither weights nor Adam's state. That is decided on the device, by the
    switch that the fused kernel has for gradient scalers, so that nobody waits for the answer.
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
