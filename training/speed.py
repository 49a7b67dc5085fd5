"""Short trials before the first step of a run: what is fastest on a CPU, and how many steps fit into max_minutes."""

import copy
import math
import os
import time

from torch import nn

from diffusion import GaussianDiffusion
from training.batches import Batches
from training.plan import total_steps
from training.processes import Processes
from training.step import TrainingStep
from training.way import usual_way

TRIAL = 20  # steps that are timed
FEW = 2  # pictures that stand for a batch which would take LONG
LONG = 15  # seconds of a step
WORTH = 10**11  # pictures times weights of a run that is worth a trial: from some minutes on


def best_way(
    recipe: dict, model: nn.Module, diffusion: GaussianDiffusion, processes: Processes, batches: Batches,
    last: dict | None,
) -> dict:  # fmt: skip
    """The `usual_way`, but on a CPU the fastest one for a new run that is WORTH a trial, and the way in which it began
    for a resumed run, which so repeats its bits.

    last: the content of the last checkpoint, None for a new run. Another way is taken if it is 10 % faster, so that two
    runs choose alike. What is set by hand is obeyed: precision, and OMP_NUM_THREADS, which torchrun sets, too.
    Prints what was taken, and how long the run takes.
    """
    usual = usual_way(recipe, processes.device)
    auto, free = recipe["precision"] == "auto", "OMP_NUM_THREADS" not in os.environ
    if last and last.get("device") == usual["device"] == "cpu":
        kept = {"precision": auto, "channels_last": True, "threads": free}
        way = usual | {key: last[key] for key, keep in kept.items() if keep}
        print(f"computes    in {_words(way)}, as before")
        return way
    steps, share = total_steps(recipe, batches.steps_per_epoch), recipe["batch_size"] // processes.world
    worth = steps * recipe["batch_size"] * sum(weight.numel() for weight in model.parameters()) > WORTH
    if usual["device"] != "cpu" or last or not worth or recipe["compile"] is True:
        return usual

    def trial(way: dict, count: int, limit: float = math.inf) -> float:
        """The seconds of the fastest of three steps of `count` pictures; of the first if that is beyond the limit."""
        parts = recipe["gradient_accumulation"] if count == share else 1
        trained = recipe | {"gradient_accumulation": parts}
        step, seconds = TrainingStep(trained, copy.deepcopy(model), diffusion, processes, way), []
        for batch in batches.steps(0, 3):
            began = time.perf_counter()
            step(batch.first(count), rate=0.0)
            seconds.append(processes.largest(round(1e6 * (time.perf_counter() - began))) / 1e6)
            if seconds[0] > min(limit, LONG / 3):
                break
        return min(seconds)

    way, few = usual | {"precision": "fp32"} if auto else usual, min(FEW, share)
    count = few if trial(way, few) * share / few > LONG else share
    first, slowest = way, trial(way, count)
    best = slowest
    for other in ({"threads": 1}, {"precision": usual["precision"]}, {"channels_last": True}):
        if way | other != way and (free or "threads" not in other):
            if (taken := trial(way | other, count, limit=2 * best)) < best / 1.1:
                way, best = way | other, taken
            if count < share and best * share / count < LONG:  # in this way a whole batch can be timed
                slowest, best, count = slowest * share / count, trial(way, share), share
    print(f"computes    in {_words(way)}: {slowest / best:.2f} times as fast as {_words(first)}")
    if not recipe["max_minutes"]:
        longer = 7 / 6 if recipe["learned_guidance"] > 1 else 1  # a third, in the second half
        _print_time(steps, longer * best * share / count)
    return way


def say_time(step: TrainingStep, batches: Batches) -> None:
    """Prints how long a run takes on a GPU. (On a CPU `best_way` does.)"""
    if step.way["device"] != "cpu":
        _print_time(total_steps(step.recipe, batches.steps_per_epoch), 60 / steps_per_minute(step, batches, trial=2))


def _print_time(steps: int, seconds: float) -> None:
    """seconds: of a step."""
    units = {"days": 86400, "hours": 3600, "minutes": 60}
    if unit := next((name for name, size in units.items() if steps * seconds > 2 * size), None):
        print(f"time        {steps:,} steps take about {steps * seconds / units[unit]:,.0f} {unit} here")


def _words(way: dict) -> str:
    layout = "channels last" if way["channels_last"] else "contiguous"
    return f"{way['precision']}, {layout}, {way['threads']} thread" + "s" * (way["threads"] > 1)


def steps_per_minute(step: TrainingStep, batches: Batches, trial: int = TRIAL) -> float:
    """The speed of `trial` steps, after three that may compile or record; of the first, if it is LONG on a
    CPU and compiles nothing.

    All processes get the same number. A run then trains as if there had been no trial: the learning rate is 0, and no
    state of the optimizer is left.
    """
    scale, began, seconds = step.scaler.state_dict(), time.perf_counter(), 0.0
    for batch in batches.steps(0, trial + 3):
        _, norm, _ = step(batch, rate=0.0, late=batch.step % 2 == 0)  # half of all steps are
        if batch.step in (0, 2, trial + 2):
            norm.item()  # waits for the device
            seconds = step.processes.largest(max(1, round(1e6 * (time.perf_counter() - began)))) / 1e6
            if batch.step == 0 and seconds > LONG and step.way["device"] == "cpu" and step.network is step.parallel:
                trial = 1
                break
            began = time.perf_counter()
    for optimizer in step.optimizers:
        optimizer.zero_grad(set_to_none=True)
        optimizer.state.clear()
    step.scaler.load_state_dict(scale)
    return 60 * trial / seconds
