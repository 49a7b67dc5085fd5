"""The optimizer step: its learning rate, and what happens when a loss or gradient is not finite."""

import math

import torch
from torch import Tensor, nn


class LossScale:
    """For float16: the loss is multiplied by a number, so that small gradients do not become 0.

    The number halves after a step whose gradient overflowed, which is left out, and doubles after 2,000 good steps, as
    in torch.amp.GradScaler. It stays on the device. In other precisions it is None, and nothing is multiplied.
    """

    def __init__(self, device: torch.device, precision: str):
        half = precision == "fp16"
        self.number = torch.full((), 2.0**16, device=device) if half else None
        self.good_steps = torch.zeros((), dtype=torch.int32, device=device)

    def is_large(self) -> Tensor | bool:
        """Whether an overflow may be the number's fault, so that it says nothing about the training. bool, ()."""
        return False if self.number is None else self.number > 1

    def update(self, found_inf: Tensor) -> None:
        if self.number is not None:
            torch._amp_update_scale_(self.number, self.good_steps, found_inf, 2.0, 0.5, 2000)

    def state(self) -> dict:
        """For a checkpoint; {} where there is no number."""
        return {} if self.number is None else {"loss_scale": self.number, "loss_scale_good_steps": self.good_steps}

    def restore(self, content: dict) -> None:
        """From a checkpoint; one of another precision has none, and the number starts anew."""
        if self.number is not None and "loss_scale" in content:
            self.number.fill_(float(content["loss_scale"]))
            self.good_steps.fill_(int(content["loss_scale_good_steps"]))


def make_optimizer(model: nn.Module, recipe: dict) -> torch.optim.Adam:
    """Adam as one fused kernel; not on MPS, where this kernel has no switch to leave a step out."""
    betas, fused = (recipe["Adam_beta1"], recipe["Adam_beta2"]), next(model.parameters()).device.type != "mps"
    return torch.optim.Adam(model.parameters(), lr=recipe["learning_rate"], betas=betas, fused=fused)


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


def backward(loss: Tensor, scale: LossScale | None = None) -> None:
    """loss.backward(), multiplied by the loss scale, and with NaN gradients if the loss is not finite.

    (The gradient of an infinite L1 loss would be ±1.) The norm of the gradient, which all processes share, then shows a
    bad loss of any process.
    """
    factor = 1.0 if scale is None or scale.number is None else scale.number
    loss.backward(torch.where(loss.detach().isfinite(), factor, torch.nan).to(loss.dtype))


def update(
    optimizer: torch.optim.Adam, rate: float, grad_clip: float | None, scale: LossScale | None = None
) -> tuple[Tensor, Tensor]:
    """One step with the current gradients, clipped to a norm of grad_clip. Returns (norm, taken), both ().

    norm: of the gradients divided by the loss scale, before clipping.

    A gradient that is not finite changes neither the weights nor Adam's state, and `taken` is False. This is decided on
    the device, by the found_inf switch that the fused kernel has for gradient scalers, so nothing waits for it. Without
    that kernel the decision is read.
    """
    (group,) = optimizer.param_groups
    weights, group["lr"] = group["params"], rate
    norm, number = torch.nn.utils.get_total_norm([weight.grad for weight in weights]), scale and scale.number
    norm = norm if number is None else norm / number
    if grad_clip is not None:
        torch.nn.utils.clip_grads_with_norm_(weights, grad_clip, norm)
    taken = norm.isfinite()
    found_inf = 1 - taken.float()
    if group["fused"]:
        optimizer.grad_scale, optimizer.found_inf = number, found_inf
        optimizer.step()
    elif taken:
        optimizer.step()
    if scale:
        scale.update(found_inf)
    return norm, taken
