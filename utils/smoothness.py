"""How smoothly an interpolation goes: the distances between its neighbouring rows."""

from pathlib import Path

import torch
from torch import Tensor


def step_sizes(rows: list[Tensor]) -> Tensor:
    """Root mean square distances between neighbouring rows, L of (P, C, H, W): (L - 1, P)."""
    return torch.stack([(b - a).square().flatten(1).mean(1).sqrt() for a, b in zip(rows, rows[1:], strict=False)]).cpu()


def jump(steps: Tensor) -> float:
    """The largest step over the mean one of a pair, averaged over all pairs: 1 is as even as can be, and
    L - 1 is one single jump. steps: (L - 1, P)."""
    return (steps.amax(0) / steps.mean(0).clamp(min=1e-12)).mean().item()


def save_smoothness(curves: dict[str, Tensor], lambdas: list[float], file: Path) -> Path:
    """Draws each mode's mean step (line) and its pairs' middle half (band) over lambda."""
    from matplotlib.figure import Figure  # takes a second to load: only when there is something to draw

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    middles = [(a + b) / 2 for a, b in zip(lambdas, lambdas[1:], strict=False)]
    for name, steps in curves.items():
        (line,) = axes.plot(middles, steps.mean(1), marker="o", label=f"{name}: largest / mean step {jump(steps):.2f}")
        low, high = steps.quantile(torch.tensor([0.25, 0.75]), dim=1)
        axes.fill_between(middles, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    axes.set(xlabel="lambda", ylabel="distance between neighbouring rows (RMS)", xlim=(0, 1), ylim=(0, None))
    axes.legend()
    figure.savefig(file, dpi=120)
    return file
