"""The log of a training: metrics.jsonl, the progress bar, TensorBoard where it is installed, and the loss curve.

A line of metrics.jsonl holds means since the previous line:
    step, epoch, loss, loss_by_quarter (of t: [0, T/4), …), grad_norm (before clipping), learning_rate,
    images_per_second (without the first step, which may compile), seconds (of training so far), skipped (steps whose
    loss or gradient was not finite);
    with each checkpoint also held_out_loss and held_out_loss_by_quarter (fixed_noise_loss if nothing is held out)
"""

import json
import math
import statistics
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from files.atomic import append, write_file
from files.errors import TrainingError
from training.held_out import HeldOut, quarter_means, quarter_sums
from training.processes import Processes
from utils.pictures import plotted

IN_A_ROW = 20  # bad steps in a row that end the run; float16 needs up to 16 until its scale has fallen from 2^16 to 1


class TrainingLog:
    """Collects the numbers of each step on the device, without waiting for it, until `write` reads them.

    A resumed run keeps the lines up to its step, `start` of `steps`. Only rank 0 writes, but all must call.
    """

    def __init__(
        self, folder: Path, recipe: dict, processes: Processes, steps_per_epoch: int, start: int, steps: int,
        held_out: HeldOut | None = None,
    ):  # fmt: skip
        self.recipe, self.processes, self.steps_per_epoch, self.step = recipe, processes, steps_per_epoch, start
        self.held_out, self.file, self.tensorboard = held_out, folder / "metrics.jsonl", None
        lines = [line for line in read_log(self.file) if line["step"] <= start]
        self.seconds = lines[-1]["seconds"] if lines else 0.0
        if processes.rank == 0:
            write_file(self.file, "".join(json.dumps(line) + "\n" for line in lines))
            with suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                self.tensorboard = SummaryWriter(folder / "tensorboard", purge_step=start + 1)
        quiet = {} if processes.rank == 0 and sys.stderr.isatty() else {"disable": True}  # else TQDM_DISABLE decides
        self.bar = tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True, **quiet)
        self.images, self.took, self.first_seconds = 0, 0.0, 0.0  # pictures seen, seconds, those of the first step
        self.speeds = []  # images per second of each line
        self.skipped_in_a_row = torch.zeros((), device=processes.device)
        self.sums = torch.zeros(10, device=processes.device)  # quarter_sums, gradient norms, steps taken
        self.restart_clock()

    def restart_clock(self) -> None:
        """After a line: what was done since then, such as saving and drawing, was not training."""
        self.began = time.perf_counter()

    def add(self, losses: Tensor, t: Tensor, norm: Tensor, taken: Tensor) -> None:
        """Adds one step: losses and t (B,), the gradient's norm () and whether the step was taken ()."""
        values = torch.cat([quarter_sums(losses, t, self.recipe["timestep_num"]), torch.stack([norm, taken])])
        self.sums += torch.where(taken, values, 0)
        self.skipped_in_a_row = torch.where(taken, 0, self.skipped_in_a_row + 1)
        self.bar.update()
        if not self.images:  # the first step may compile for minutes
            self.first_seconds = time.perf_counter() - self.began
        self.images += self.recipe["batch_size"]

    def write(self, step: int, learning_rate: float, with_held_out: bool = False) -> dict:
        """Writes and returns the line for the steps up to `step`, the number of steps done.

        with_held_out: adds the held-out loss and prints the line. TrainingError, in rank 0, if the last IN_A_ROW steps
        were bad ones; the other processes exit silently.
        """
        self.processes.add([self.sums[:8]])
        steps, taken = step - self.step, int(self.sums[9])
        seconds = time.perf_counter() - self.began
        self.seconds, self.took = self.seconds + seconds, self.took + seconds
        loss, by_quarter = quarter_means(self.sums[:8])
        if self.skipped_in_a_row >= IN_A_ROW:
            if self.processes.rank:
                sys.exit(1)
            raise TrainingError(
                f"{int(self.skipped_in_a_row)} steps in a row, up to step {step}, had a loss or gradient that is not "
                "finite. Such steps change nothing and are not saved: lower learning_rate, set grad_clip, use "
                "precision=fp32, and run the command again; it resumes from the last checkpoint, if there is one"
            )
        left_out = bool(self.first_seconds) and steps > 1  # the first step, which may compile
        self.speeds.append((steps - left_out) * self.recipe["batch_size"] / (seconds - left_out * self.first_seconds))
        line = {
            "step": step,
            "epoch": math.ceil(step / self.steps_per_epoch),
            "loss": loss,
            "loss_by_quarter": by_quarter,
            "grad_norm": float(self.sums[8]) / taken if taken else None,
            "learning_rate": learning_rate,
            "images_per_second": round(self.speeds[-1], 1),
            "seconds": round(self.seconds, 3),
            "skipped": steps - taken,
        }
        self.step, self.first_seconds = step, 0.0
        if self.processes.rank == 0:
            line |= self.held_out.loss() if with_held_out and self.held_out else {}
            append(self.file, json.dumps(line) + "\n")
            self._show(line, with_held_out or line["skipped"] > 0 or self.bar.disable)
        self.sums.zero_()
        self.restart_clock()
        return line

    def _show(self, line: dict, printed: bool) -> None:
        if printed:
            self.bar.write(summary(line))
        slower, cpu = statistics.median(self.speeds) / self.speeds[-1], self.processes.device.type == "cpu"
        if slower > 3 and cpu and torch.get_num_threads() > 1:  # threads wait for each other
            self.bar.write(
                f"steps take {slower:.0f} times as long as usual: if other programs use the cores, stop, and resume "
                "with OMP_NUM_THREADS=1, or with torchrun and a process for each core"
            )
        self.bar.set_postfix(loss=line["loss"])
        if self.tensorboard:
            for name, value in line.items():
                for i, number in enumerate(value if isinstance(value, list) else [value]):
                    if number is not None and name not in ("step", "seconds"):
                        tag = f"{name}/{i}" if isinstance(value, list) else name
                        self.tensorboard.add_scalar(tag, number, line["step"])
            self.tensorboard.flush()


def summary(line: dict) -> str:
    """A line of metrics.jsonl for people."""
    losses = [(name.replace("_", " "), line.get(name)) for name in ("loss", "held_out_loss", "fixed_noise_loss")]
    words = [f"step {line['step']:,}", f"epoch {line['epoch']}"]
    words += [f"{name} {value:.4f}" for name, value in losses if value is not None]
    decimals = 1 if line["images_per_second"] < 10 else 0
    words += [f"{line['images_per_second']:.{decimals}f} images/s"]
    if line["skipped"]:
        words.append(f"{line['skipped']} step(s) skipped: the loss or the gradient was not finite")
    return "  ".join(words)


def read_log(file: Path) -> list[dict]:
    """The lines of a metrics.jsonl, without incomplete ones."""
    lines = []
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []:
        with suppress(ValueError):  # the training was killed while it wrote this line
            lines += [line for line in [json.loads(text)] if isinstance(line, dict)]
    return lines


def save_loss_curve(lines: list[dict], file: Path) -> None:
    """Plots the training loss, for all t and by quarter of t, and the held-out loss over the steps."""
    lines = [line for line in lines if line["loss"] is not None]
    steps = [line["step"] for line in lines]
    with plotted(file, xlabel="step", ylabel="loss", yscale="log") as axes:
        for i, name in enumerate(("t < T/4 (little noise)", "T/4 to T/2", "T/2 to 3T/4", "t > 3T/4 (much noise)")):
            losses = [math.nan if (value := line["loss_by_quarter"][i]) is None else value for line in lines]
            axes.plot(steps, losses, linewidth=0.8, alpha=0.5, color=f"C{i}", label=name)
        axes.plot(steps, [line["loss"] for line in lines], linewidth=1.2, color="black", label="training, all t")
        for key, name in (("held_out_loss", "held out, averaged weights"), ("fixed_noise_loss", "fixed noise")):
            if points := [(line["step"], line[key]) for line in lines if line.get(key) is not None]:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color="red", label=name)
