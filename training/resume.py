"""Resuming a run: the lock on its folder, the checkpoint to resume from, whether it is the same run, and its state."""

import glob
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from torch import nn
from torch.optim import Optimizer

from files.atomic import clear_parts, lock, write_file
from files.errors import CheckpointError, ConfigError, DamagedCheckpointError, TrainingError
from models import relabelled
from runs.checkpoint import load_checkpoint, save_checkpoint
from runs.config import read_yaml
from runs.labels import class_names
from runs.network import EXPLODED, check_dense, largest_weight, load_state
from runs.recipe import KEYS, RESUMABLE, changed_keys, complete_recipe
from runs.run import load_run
from training.background import Background, copied
from training.optimizer import LossScale, moments
from training.processes import Processes


def pretrained_recipe(recipe: dict) -> dict:
    """The recipe of the weights that a run starts from: its own if it has begun, else the one of its init_from."""
    saved = Path(recipe["save_dir"], recipe["pth_save_name"], "recipe.yaml")
    if not saved.exists():
        return load_run(recipe["init_from"]).recipe
    try:
        return complete_recipe(read_yaml(saved.read_text(encoding="utf-8")), str(saved))
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{saved} is damaged: move it away, and init_from is read again") from error


def load_pretrained(model: nn.Module, recipe: dict) -> None:
    """Loads the weights of init_from into the network of a recipe, which may have other classes.

    A class that the file knows by name keeps its embedding; see `relabelled` for the others.
    """
    file, names = recipe["init_from"], class_names(recipe)
    first = load_run(file)
    tensors, known = first.model.state_dict(), class_names(first.recipe)
    unnamed = not first.recipe["class_names"] and len(known) == len(names)  # from diffusers: the order has to do
    if names != known and not unnamed:
        numbers = {name: number for number, name in enumerate(known)}
        rows = [numbers.get(name) for name in names]
        if names:
            print(f"classes     {rows.count(None)} of {len(names)} are new to {file}")
        tensors = relabelled(tensors, rows)
    load_state(model, tensors, file)


def save_recipe(file: Path, recipe: dict) -> None:
    """Writes the recipe as YAML."""
    write_file(file, yaml.safe_dump(recipe, sort_keys=False))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Locks a run's folder, which is created if missing, and removes half-written files of a killed training.

    CheckpointError if another training holds the lock. The lock ends with the process, however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY) if os.name == "posix" else None  # Windows cannot open folders
    try:
        if descriptor is not None:
            lock(descriptor)
    except BlockingIOError as error:
        os.close(descriptor)
        raise CheckpointError(f"another training is running in {folder}: wait for it, or stop it") from error
    try:
        clear_parts(folder)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def find_checkpoint(file: Path, resume: str) -> dict | None:
    """The content of the checkpoint to resume from, or None for a new run. resume: "auto" or "never".

    "auto" takes the newest undamaged one of `file` and its predecessors; damaged ones are renamed, with a message.
    A run is never overwritten: CheckpointError if all checkpoints are damaged, if one cannot be read for another
    reason, and for "never" where there are checkpoints.
    """
    kept = [file, *sorted(file.parent.glob(f"{glob.escape(file.stem)}.*.pt"), key=_age)]
    kept = [candidate for candidate in kept if candidate.exists()]
    if kept and resume == "never":
        raise CheckpointError(
            f"{kept[0]} exists and would be overwritten: remove --resume never to resume it, set another pth_save_name "
            "or save_dir, or move it away"
        )
    for i, candidate in enumerate(kept):
        try:
            content = load_checkpoint(candidate)
        except DamagedCheckpointError as error:
            print(error, file=sys.stderr)
            continue
        for damaged in kept[:i]:  # otherwise the next save would push the good one out
            print(f"renamed to {damaged.replace(damaged.with_name(damaged.name + '.damaged'))}", file=sys.stderr)
        return content
    if kept:
        raise CheckpointError(
            f"all checkpoints are damaged ({', '.join(map(str, kept))}): move them away to start anew"
        )
    return None


def _age(file: Path) -> int:
    number = file.suffixes[-2][1:]
    return int(number) if re.fullmatch("[0-9]{1,9}", number) else sys.maxsize


def check_same_run(content: dict, recipe: dict) -> None:
    """Prints the keys that differ from the checkpoint's; CheckpointError for those that must not.

    The weights that a run started from may have been moved: only the name of the file counts.
    """
    was, recipe = (r | {"init_from": r["init_from"] and Path(r["init_from"]).name} for r in (content["recipe"], recipe))
    if changed := changed_keys(was, recipe, set(KEYS) - RESUMABLE):
        raise CheckpointError(
            f"the checkpoint is from a run with other settings ({'; '.join(changed)}): use the old values, or set "
            "another pth_save_name"
        )
    for change in changed_keys(was, recipe, RESUMABLE):
        print(change)


class TrainingState:
    """What a checkpoint holds of a training: network, average and optimizer; and the numbers of pictures and processes,
    which may differ when the run is resumed. It then continues, but differently from an unchanged run.

    writing: runs the writing of a checkpoint. On a GPU this is a thread, which writes a copy in the host's memory while
    the training continues; on a CPU it would only take cores from the training.
    """

    def __init__(
        self, file: Path, recipe: dict, model: nn.Module, ema: nn.Module, optimizer: Optimizer, scale: LossScale,
        processes: Processes, images: int, writing: Background,
    ):  # fmt: skip
        self.file, self.recipe, self.processes, self.writing = file, recipe, processes, writing
        self.model, self.ema, self.optimizer, self.scale = model, ema, optimizer, scale
        self.circumstances = {"images": images, "processes": processes.world}

    def save(self, step: int, loss: float | None = None) -> None:
        """Rank 0 writes the checkpoint after `step` steps, or starts to (see `Background`).

        loss: of the last steps. TrainingError, and no file, if it or the weights have exploded.
        """
        if self.processes.rank == 0:
            largest = max(largest_weight(self.model), loss or 0)
            if largest > EXPLODED:
                raise TrainingError(
                    f"the training has diverged: after step {step:,} its loss or weights reach {largest:.1e}. This is "
                    "not saved: lower learning_rate or set grad_clip, and run the command again; it resumes from the "
                    "last checkpoint, if there is one"
                )
            content = {"recipe": self.recipe, "step": step, **self.circumstances, **self.scale.state()}
            content |= {"optimizer": self.optimizer.state_dict(), "model": self.model.state_dict()}
            content |= {"ema": self.ema.state_dict()}
            self.writing.wait()  # so that there is one copy at a time
            content, keep = copied(content) if self.writing.threaded else content, self.recipe["keep_checkpoints"]
            self.writing.start(lambda: save_checkpoint(self.file, content, keep))

    def restore(self, content: dict) -> int:
        """Restores a checkpoint's content; returns the number of steps done. CheckpointError if it does not fit."""
        load_state(self.model, content["model"], "the checkpoint")
        load_state(self.ema, content["ema"], "the checkpoint")
        try:  # only the state comes from the file; the settings of the optimizer come from the recipe
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": content["optimizer"]["state"]})
            for name, weight in self.model.named_parameters():
                state = self.optimizer.state[weight]
                if not state["step"] >= 0:
                    raise ValueError(f"{state['step']} steps of {name}")
                for moment in moments(self.optimizer, weight):
                    least = 0 if moment == "exp_avg_sq" else -math.inf
                    check_dense(state[moment], f"{moment} of {name}")
                    if state[moment].shape != weight.shape:
                        raise ValueError(f"{moment} of shape {tuple(state[moment].shape)}, not {tuple(weight.shape)}")
                    if not (state[moment].isfinite() & (state[moment] >= least)).all():
                        raise ValueError(f"{moment} of {name} has impossible values")
                    # fused kernels need the memory layout of the weight
                    state[moment] = torch.empty_like(weight).copy_(state[moment])
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            raise CheckpointError(f"the checkpoint's optimizer state does not fit: {what}") from error
        self.scale.restore(content)
        for name, value in self.circumstances.items():
            if content.get(name, value) != value:
                print(f"{name}: was {content[name]}, is {value}: from here on the run differs from an unchanged one")
        print(f"resuming from step {content['step']:,}")
        return content["step"]
