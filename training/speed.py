"""How many optimizer steps fit into max_minutes: a short trial before the first step of a run measures it."""

import time

from torch import Tensor

from training.batches import Batches
from training.step import TrainingStep

TRIAL = 20  # steps that are timed


def steps_per_minute(step: TrainingStep, batches: Batches) -> float:
    """The speed of TRIAL steps, after one that is not timed because it may compile. All processes get the same number.

    The learning rate is 0, so that the weights and their average stay as they are. The optimizer is left without a
    state, and the scaler with the one it had. A run therefore trains as if there had been no trial.
    """
    scale, began = step.scaler.state_dict(), 0.0
    for batch in batches.steps(0, TRIAL + 1):
        _, norm, _ = step(batch, rate=0.0)
        if batch.step == 0:
            began = _now(norm)
    seconds = step.processes.largest(max(1, round(1e6 * (_now(norm) - began)))) / 1e6
    step.optimizer.zero_grad(set_to_none=True)
    step.optimizer.state.clear()
    step.scaler.load_state_dict(scale)
    return 60 * TRIAL / seconds


def _now(norm: Tensor) -> float:
    """The time at which the device has computed this."""
    norm.item()
    return time.monotonic()
