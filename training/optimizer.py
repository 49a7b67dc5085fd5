"""The optimizer step: its learning rate, and what happens when a loss or gradient is not finite."""

import math
from collections import defaultdict

import torch
from torch import Tensor, nn

from training.processes import Processes


class Muon(torch.optim.Adam):
    """Muon (Jordan et al. 2024) for matrices and convolution kernels, Adam for vectors such as biases.

    The step of a matrix is the nearest semi-orthogonal matrix to its averaged gradient. A kernel (out, in, h, w) is a
    matrix (out, in * h * w). The step is scaled by 0.2 sqrt(max(rows, columns)), so that its entries are about as large
    as Adam's and one learning rate suits both (Liu et al. 2025, section 2.2).

    processes: those that train together, with the same gradients. Each computes the steps of its share of the matrices,
    and gets the others' in one exchange.
    """

    MOMENTUM = 0.95  # Nesterov's
    AT_ONCE = 2**22  # entries of the matrices in a batch, 16 MiB: the step holds about eight times as much
    processes: Processes | None = None

    @torch.no_grad()
    def step(self) -> None:
        (group,) = self.param_groups
        taken = torch.tensor(True) if (found := getattr(self, "found_inf", None)) is None else found == 0
        alike = defaultdict(list)  # matrices of one shape, to be batched: on a GPU each small product costs a launch
        for weight in group["params"]:
            if weight.ndim < 2 or weight.grad is None:
                continue
            if not (state := self.state[weight]):  # Adam expects a step
                state |= {"step": torch.zeros((), device=weight.device), "exp_avg": torch.zeros_like(weight)}
            alike[weight.shape].append(weight)
        batches, done = [], []
        for shape, same in alike.items():
            size = max(1, self.AT_ONCE // shape.numel())
            batches += [same[i : i + size] for i in range(0, len(same), size)]
        rank, world = (self.processes.rank, self.processes.world) if self.processes else (0, 1)
        for weights in batches:
            averages = [self.state[weight]["exp_avg"] for weight in weights]
            average = torch.stack(averages)
            gradient = torch.stack([weight.grad for weight in weights])
            gradient = torch.where(taken, gradient, average)  # which leaves the average of a skipped step as it is
            average.lerp_(gradient, 1 - self.MOMENTUM)
            torch._foreach_copy_(averages, average.unbind())
            direction = gradient.lerp(average, self.MOMENTUM).flatten(2)
            step = torch.zeros_like(direction)
            mine = slice((rank - len(done)) % world, None, world)  # matrix i of all is for process i % world
            step[mine] = orthogonal(direction[mine])
            step *= 0.2 * max(step.shape[1:]) ** 0.5 * taken
            torch._foreach_copy_([weight.grad for weight in weights], step.view_as(average).unbind())
            done += weights
        if done:
            steps = [weight.grad for weight in done]
            if self.processes:
                self.processes.add(steps)
            torch._foreach_sub_(done, steps, alpha=group["lr"])
        for weight in done:
            weight.grad = None  # Adam passes over it
        super().step()


OPTIMIZERS = {"adam": torch.optim.Adam, "muon": Muon}


def orthogonal(matrices: Tensor) -> Tensor:
    """About U V^T of each matrix U S V^T of a batch (N, rows, columns).

    Five Newton-Schulz steps bring all but tiny singular values near 1 (0.7 to 1.2). The polynomial
    3.4445 s - 4.775 s³ + 2.0315 s⁵ is Jordan's. It is steep at 0 rather than exact at 1.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / (torch.linalg.vector_norm(wide, dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (2.0315 * a @ a - 4.775 * a) @ x
    return x if wide is matrices else x.mT


def make_optimizer(model: nn.Module, recipe: dict, processes: Processes | None = None) -> torch.optim.Adam:
    """Adam as one fused kernel, or Muon; not fused on MPS, where this kernel has no switch to leave a step out."""
    betas, fused = (recipe["Adam_beta1"], recipe["Adam_beta2"]), next(model.parameters()).device.type != "mps"
    kind = OPTIMIZERS[recipe["optimizer"]]
    optimizer = kind(model.parameters(), lr=recipe["learning_rate"], betas=betas, fused=fused)
    optimizer.processes = processes  # Adam's step needs none
    return optimizer


def learning_rate(recipe: dict, step: int, steps: int) -> float:
    """The learning rate of optimizer step `step`, from 0, of `steps`.

    It rises linearly over warmup_steps, then stays constant or falls along half a cosine to 0 after the last step.
    """
    warmup = min(recipe["warmup_steps"], steps)
    if step < warmup:
        return recipe["learning_rate"] * (step + 1) / warmup
    if recipe["lr_schedule"] == "constant":
        return recipe["learning_rate"]
    return recipe["learning_rate"] * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


UNSCALED = torch.amp.GradScaler("cpu", enabled=False)  # leaves losses and gradients as they are


def backward(loss: Tensor, scaler: torch.amp.GradScaler = UNSCALED) -> None:
    """loss.backward(), multiplied by the scaler's number, and with NaN gradients if the loss is not finite.

    The norm of the gradient, which all processes share, then shows it. (That of an infinite L1 loss would be ±1.)
    """
    scaled = scaler.scale(loss)
    scaled.backward(torch.where(loss.detach().isfinite(), 1.0, torch.nan).to(scaled.dtype))


def update(
    optimizer: torch.optim.Adam, rate: float, grad_clip: float | None, scaler: torch.amp.GradScaler = UNSCALED
) -> tuple[Tensor, Tensor]:
    """One step with the current gradients, clipped to a norm of grad_clip. Returns (norm, taken), both ().

    scaler: for float16, where it multiplies the loss so that small gradients do not become 0; disabled otherwise.
    norm: of the gradients of the loss itself, before clipping.

    A gradient that is not finite changes neither the weights nor Adam's state, and `taken` is False. The found_inf
    switch of the fused kernel decides it on the device, so nothing waits; without that kernel the decision is read.
    """
    (group,) = optimizer.param_groups
    weights, group["lr"] = group["params"], rate
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights])
    if grad_clip is not None:
        torch.nn.utils.clip_grads_with_norm_(weights, grad_clip, norm)
    taken = norm.isfinite()
    if group["fused"]:
        optimizer.found_inf = 1 - taken.float()
        scaler.step(optimizer)
    elif taken:
        scaler.step(optimizer)
    scaler.update()
    return norm, taken
