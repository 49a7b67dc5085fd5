"""The optimizer step: its learning rate, and what happens when a loss or gradient is not finite."""

import math
from collections import defaultdict

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


class Muon(torch.optim.Adam):
    """Muon (Jordan et al. 2024) for matrices and convolution kernels, Adam for vectors such as biases.

    The step of a matrix is the nearest semi-orthogonal matrix to its averaged gradient. A kernel (out, in, h, w) is a
    matrix (out, in * h * w). The step is scaled by 0.2 sqrt(max(rows, columns)), so that its entries are about as large
    as Adam's and one learning rate suits both (Liu et al. 2025, section 2.2).
    """

    MOMENTUM = 0.95  # Nesterov's
    AT_ONCE = 2**22  # entries of the matrices in a batch, 16 MiB: the step holds about eight times as much

    @torch.no_grad()
    def step(self) -> None:
        (group,) = self.param_groups
        taken = torch.tensor(True) if (found := getattr(self, "found_inf", None)) is None else found == 0
        scale = getattr(self, "grad_scale", None)  # of float16, see `LossScale`
        alike = defaultdict(list)  # matrices of one shape, to be batched: on a GPU each small product costs a launch
        for weight in group["params"]:
            if weight.ndim < 2 or weight.grad is None:
                continue
            if not (state := self.state[weight]):  # Adam expects a step
                state |= {"step": torch.zeros((), device=weight.device), "exp_avg": torch.zeros_like(weight)}
            alike[weight.shape].append(weight)
        batches = []
        for shape, same in alike.items():
            size = max(1, self.AT_ONCE // shape.numel())
            batches += [same[i : i + size] for i in range(0, len(same), size)]
        for weights in batches:
            averages = [self.state[weight]["exp_avg"] for weight in weights]
            average = torch.stack(averages)
            gradient = torch.stack([weight.grad for weight in weights])
            gradient = gradient if scale is None else gradient / scale
            gradient = torch.where(taken, gradient, average)  # which leaves the average of a skipped step as it is
            average.lerp_(gradient, 1 - self.MOMENTUM)
            step = orthogonal(gradient.lerp(average, self.MOMENTUM).flatten(2))
            step *= 0.2 * max(step.shape[1:]) ** 0.5 * taken
            torch._foreach_copy_(averages, average.unbind())
            torch._foreach_sub_(weights, step.view_as(average).unbind(), alpha=group["lr"])
            for weight in weights:
                weight.grad = None  # Adam passes over it
        super().step()


OPTIMIZERS = {"adam": torch.optim.Adam, "muon": Muon}


def orthogonal(matrices: Tensor) -> Tensor:
    """About U V^T of each matrix U S V^T of a batch (N, rows, columns).

    Five Newton-Schulz steps bring all singular values near 1 (0.7 to 1.2). The polynomial
    3.4445 s - 4.775 s³ + 2.0315 s⁵ is Jordan's. It is steep at 0 rather than exact at 1.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / (torch.linalg.vector_norm(wide, dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (2.0315 * a @ a - 4.775 * a) @ x
    return x if wide is matrices else x.mT


def make_optimizer(model: nn.Module, recipe: dict) -> torch.optim.Adam:
    """Adam as one fused kernel, or Muon; not fused on MPS, where this kernel has no switch to leave a step out."""
    betas, fused = (recipe["Adam_beta1"], recipe["Adam_beta2"]), next(model.parameters()).device.type != "mps"
    kind = OPTIMIZERS[recipe["optimizer"]]
    return kind(model.parameters(), lr=recipe["learning_rate"], betas=betas, fused=fused)


def moments(optimizer: torch.optim.Adam, weight: Tensor) -> tuple[str, ...]:
    """The averages of gradients that the optimizer keeps for a weight, by their names in its state."""
    return ("exp_avg",) if isinstance(optimizer, Muon) and weight.ndim > 1 else ("exp_avg", "exp_avg_sq")


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
