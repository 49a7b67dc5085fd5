"""What a training tells of itself: metrics.jsonl, TensorBoard where it is installed, and the loss curve.

A line of metrics.jsonl holds means since the line before:
    step, epoch, loss, loss_by_quarter (of t: [0, T/4), …), grad_norm (before clipping), learning_rate,
    images_per_second, seconds (of training so far), skipped (steps whose loss or gradient was not finite);
    with each checkpoint also held_out_loss and held_out_loss_by_quarter (fixed_noise_loss where nothing is held out)
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import TrainingError
from utils.processes import Processes

IN_A_ROW = 3  # steps that go wrong one after the other: then the run ends


def quarter_sums(losses: Tensor, t: Tensor, timestep_num: int) -> Tensor:
    """Losses (B,) summed by the quarter of t (B,), and how many they are: (8,)."""
    of_quarter = (t[:, None] * 4 // timestep_num == torch.arange(4, device=t.device)).to(losses.dtype)  # (B, 4)
    return torch.cat([losses @ of_quarter, of_quarter.sum(0)])


def quarter_means(sums: Tensor) -> tuple[float | None, list[float | None]]:
    """The mean loss of all and of each quarter out of `quarter_sums`; None where there is none."""
    values, counts = sums[:4].tolist(), sums[4:].tolist()
    means = [value / count if count else None for value, count in zip(values, counts, strict=True)]
    return (sum(values) / sum(counts) if sum(counts) else None), means


class Metrics:
    """Sums up what `add` is given, on the device and without waiting for it, until `log` reads and writes it.

    A run that goes on keeps the lines up to its step. Only rank 0 writes; all must call.
    """

    def __init__(self, folder: Path, recipe: dict, processes: Processes, step: int):
        self.recipe, self.processes, self.step = recipe, processes, step
        self.file, self.writer = folder / "metrics.jsonl", None
        lines = [line for line in read_metrics(self.file) if line["step"] <= step]
        self.seconds = lines[-1]["seconds"] if lines else 0.0
        if processes.rank == 0:
            part = self.file.with_suffix(".part")
            part.write_text("".join(json.dumps(line) + "\n" for line in lines))
            part.replace(self.file)
            self.writer = _tensorboard(folder, step)
        self.bad_in_a_row, self.worst = (torch.zeros((), device=processes.device) for _ in range(2))
        self._restart()

    def _restart(self) -> None:
        self.sums = torch.zeros(10, device=self.processes.device)  # quarter_sums, norms, steps taken
        self.worst.copy_(self.bad_in_a_row)
        self.began = time.monotonic()

    def add(self, losses: Tensor, t: Tensor, norm: Tensor, taken: Tensor) -> None:
        """One step: losses and t (B,), the gradient's norm and whether the step was taken, both ()."""
        values = torch.cat([quarter_sums(losses, t, self.recipe["timestep_num"]), torch.stack([norm, taken])])
        self.sums += torch.where(taken, values, 0)
        self.bad_in_a_row = torch.where(taken, 0, self.bad_in_a_row + 1)
        self.worst = torch.maximum(self.worst, self.bad_in_a_row)

    def log(self, step: int, steps_per_epoch: int, learning_rate: float, more: Callable[[], dict]) -> dict:
        """Writes a line for the steps since the last one, `step` steps having been done, and returns it. What `more`
        returns, when rank 0 calls it, comes along. TrainingError if three steps or more in a row went wrong.
        """
        self.processes.add(self.sums[:8])
        steps, taken = step - self.step, int(self.sums[9])
        seconds = time.monotonic() - self.began
        self.seconds += seconds
        loss, by_quarter = quarter_means(self.sums[:8])
        if self.worst >= IN_A_ROW:
            if self.processes.rank:  # all know it, and one says it
                sys.exit(1)
            raise TrainingError(
                f"{int(self.worst)} steps in a row, up to step {step}, had a loss or gradient that is not finite; the "
                "weights were not touched and the last checkpoint is good: lower learning_rate, set grad_clip or use "
                "precision=fp32, and go on from it"
            )
        line = {
            "step": step,
            "epoch": math.ceil(step / steps_per_epoch),
            "loss": loss,
            "loss_by_quarter": by_quarter,
            "grad_norm": float(self.sums[8]) / taken if taken else None,
            "learning_rate": learning_rate,
            "images_per_second": round(steps * self.recipe["batch_size"] / seconds, 1),
            "seconds": round(self.seconds, 3),
            "skipped": steps - taken,
        }
        self.step = step
        if self.processes.rank == 0:
            line |= more()
            with open(self.file, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        if self.writer:
            for name, value in line.items():
                for i, number in enumerate(value if isinstance(value, list) else [value]):
                    if number is not None and name not in ("step", "seconds"):
                        self.writer.add_scalar(f"{name}/{i}" if isinstance(value, list) else name, number, step)
            self.writer.flush()
        self._restart()
        return line

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Its time does not count: saving and drawing are not training."""
        began = time.monotonic()
        yield
        self.began += time.monotonic() - began


def summary(line: dict) -> str:
    """A line of metrics.jsonl for people."""
    losses = [(name.replace("_", " "), line.get(name)) for name in ("loss", "held_out_loss", "fixed_noise_loss")]
    words = [f"step {line['step']:,}", f"epoch {line['epoch']}"]
    words += [f"{name} {value:.4f}" for name, value in losses if value is not None]
    if line["skipped"]:
        words.append(f"{line['skipped']} step(s) skipped: the loss or the gradient was not finite")
    return "  ".join(words)


def read_metrics(file: Path) -> list[dict]:
    """The lines of a metrics.jsonl; without those that were cut off in the middle."""
    lines = []
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        numbers = [line.get(key) for key in ("step", "seconds")] if isinstance(line, dict) else [None]
        if all(isinstance(number, int | float) for number in numbers) and "loss_by_quarter" in line:
            lines.append(line)
    return lines


def save_loss_curve(lines: list[dict], file: Path) -> None:
    """Draws the training loss, of all t and of each quarter, and the held-out loss over the steps."""
    from matplotlib.figure import Figure  # takes a second to load: only when there is something to draw

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    lines = [line for line in lines if line["loss"] is not None]
    steps = [line["step"] for line in lines]
    for i, name in enumerate(("t < T/4 (little noise)", "T/4 to T/2", "T/2 to 3T/4", "3T/4 on (much noise)")):
        losses = [math.nan if (value := line["loss_by_quarter"][i]) is None else value for line in lines]
        axes.plot(steps, losses, linewidth=0.8, alpha=0.5, color=f"C{i}", label=name)
    axes.plot(steps, [line["loss"] for line in lines], linewidth=1.2, color="black", label="all, in training")
    for key, name in (("held_out_loss", "held out, averaged weights"), ("fixed_noise_loss", "fixed noise")):
        if points := [(line["step"], line[key]) for line in lines if line.get(key) is not None]:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color="red", label=name)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=120)


def _tensorboard(folder: Path, step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder / "tensorboard", purge_step=step + 1)
