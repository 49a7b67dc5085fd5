"""Resuming a run: the lock on its folder, the checkpoint to resume from, whether it is the same run, and its state."""

import glob
import hashlib
import math
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn

from files.atomic import Part, clear_parts, locked, write_file
from files.errors import CheckpointError, ConfigError, DamagedCheckpointError, Stopped, TrainingError
from models import relabelled
from runs.checkpoint import load_checkpoint, save_checkpoint
from runs.config import read_yaml
from runs.labels import class_names
from runs.network import EXPLODED, largest_weight, load_state
from runs.recipe import KEYS, RESUMABLE, changed_keys, complete_recipe
from runs.run import load_run
from training.background import Background, copied
from training.optimizer import learning_rate, moments
from training.plan import total_steps
from training.step import TrainingStep


def pretrained_recipe(recipe: dict) -> dict:
    """The recipe of the weights that a run starts from: its own if it has a checkpoint, else that of its init_from."""
    name, first = recipe["pth_save_name"], Path(recipe["init_from"])
    saved = Path(recipe["save_dir"], name, "recipe.yaml")
    if saved.exists() and any(saved.parent.glob(f"{glob.escape(name)}.*pt")):
        try:
            own = complete_recipe(read_yaml(saved.read_text(encoding="utf-8")), str(saved))
        except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(f"{saved} is damaged: move it away, and init_from is read again") from error
        if own["init_from"] and Path(own["init_from"]).name == first.name:  # the file may have been moved since
            return own
    return load_run(first).recipe


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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with Part(folder / f"{folder.name}.pt"):  # of all names in it the longest
            pass
    except OSError as error:
        raise CheckpointError(f"{folder}: {error.strerror}: set another pth_save_name or save_dir") from error
    with ExitStack() as until_exit:
        try:
            until_exit.enter_context(locked(folder))
        except BlockingIOError as error:
            raise CheckpointError(f"another training is running in {folder}: wait for it, or stop it") from error
        clear_parts(folder)
        yield


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


def as_begun(recipe: dict, content: dict) -> dict:
    """The recipe, with the speed that was measured when the run began. content: of its last checkpoint.

    Prints the keys that differ from the checkpoint's; CheckpointError for those that must not.

    The weights that a run started from may have been moved: only the name of the file counts.
    """
    recipe = recipe | {key: recipe[key] or content["recipe"].get(key) for key in ("steps_per_minute", "teacher_sha256")}
    was, now = (r | {"init_from": r["init_from"] and Path(r["init_from"]).name} for r in (content["recipe"], recipe))
    if changed := changed_keys(was, now, set(KEYS) - RESUMABLE):
        less_memory = " (gradient_accumulation may change, and saves memory)" * (was["batch_size"] != now["batch_size"])
        raise CheckpointError(
            f"the checkpoint is from a run with other settings ({'; '.join(changed)}): use the old values{less_memory}"
            ", or set another pth_save_name"
        )
    for change in changed_keys(was, now, RESUMABLE):
        print(change)
    return recipe


def say_rate(content: dict, recipe: dict, steps: int, steps_per_epoch: int) -> None:
    """Prints the learning rate after a checkpoint with this content if it is another one than before."""
    done, old = content["step"], content["recipe"]
    if done >= steps:
        return
    last = total_steps(old, steps_per_epoch) - 1
    was, now = learning_rate(old, min(done, last), last + 1), learning_rate(recipe, done, steps)
    if not math.isclose(was, now, rel_tol=0.01, abs_tol=1e-12):
        print(f"learning rate: was {was:.2g} at step {done:,}, is {now:.2g}: it follows the new settings and length")


def fingerprint(images: np.ndarray) -> str:
    """16 hex digits that change with the pictures (N, C, H, W), from 256 of them, wherever they are stored."""
    rows = np.linspace(0, len(images) - 1, 256).astype(int)
    return hashlib.sha256(images[rows].tobytes()).hexdigest()[:16]


class TrainingState:
    """What a checkpoint holds of a training: network, average and optimizer; and its circumstances, the pictures and
    the number of processes, which may differ when the run is resumed. It then continues, but differently from an
    unchanged run.

    writing: runs the writing of a checkpoint. On a GPU this is a thread, which writes a copy in the host's memory while
    the training continues; on a CPU it would only take cores from the training.
    Raises ConfigError for a recipe that could not be read again.
    """

    def __init__(self, folder: Path, step: TrainingStep, images: np.ndarray, writing: Background, resume: str = "auto"):
        complete_recipe(step.recipe, "the recipe")  # nothing is trained that `load_checkpoint` would refuse
        self.file, self.step, self.recipe = folder / f"{folder.name}.pt", step, step.recipe
        self.writing, self.resume, self.saved = writing, resume, 0  # the step of the last checkpoint
        self.circumstances = {"images": len(images), "pictures": fingerprint(images), "processes": step.processes.world}

    def save_recipe(self) -> None:
        """Writes recipe.yaml beside the checkpoint."""
        save_recipe(self.file.with_name("recipe.yaml"), self.recipe)

    def due(self, done: int) -> bool:
        """Whether one of the steps since the last checkpoint, up to the number `done`, is to be saved."""
        return done // self.recipe["save_every"] > self.saved // self.recipe["save_every"]

    def save(self, done: int, loss: float | None = None) -> None:
        """Rank 0 writes the checkpoint after `done` steps, or starts to (see `Background`).

        loss: of the last steps. TrainingError, and no file, if it or the weights have exploded.
        """
        self.saved, step = done, self.step
        if step.processes.rank == 0:
            largest = max(largest_weight(step.model), loss or 0)
            if largest > EXPLODED:
                raise TrainingError(
                    f"the training has diverged: after step {done:,} its loss or weights reach {largest:.1e}. This is "
                    "not saved: lower learning_rate or set grad_clip, and run the command again; it resumes from the "
                    "last checkpoint, if there is one"
                )
            content = {"recipe": self.recipe, "step": done, **self.circumstances, "scaler": step.scaler.state_dict()}
            content |= {"optimizer": step.optimizer.state_dict(), "model": step.model.state_dict()}
            content |= {"ema": step.ema.model.state_dict()}
            self.writing.wait()  # so that there is one copy at a time
            content, keep = copied(content) if self.writing.threaded else content, self.recipe["keep_checkpoints"]
            self.writing.start(lambda: save_checkpoint(self.file, content, keep))

    def restore(self, content: dict) -> int:
        """Restores a checkpoint's content; returns the number of steps done. CheckpointError if it does not fit."""
        model, optimizer = self.step.model, self.step.optimizer
        load_state(model, content["model"], "the checkpoint")
        load_state(self.step.ema.model, content["ema"], "the checkpoint")
        try:  # only the state comes from the file; the settings of the optimizer come from the recipe
            optimizer.load_state_dict({**optimizer.state_dict(), "state": content["optimizer"]["state"]})
            for weight in model.parameters():
                for moment in moments(optimizer, weight):  # fused kernels need the memory layout of the weight
                    known = optimizer.state[weight]
                    known[moment] = torch.empty_like(weight).copy_(known[moment].view_as(weight))
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            raise CheckpointError(f"the checkpoint's optimizer state does not fit: {what}") from error
        scaler = content.get("scaler") or {}
        if "loss_scale" in content:  # of an earlier version
            scaler = {"scale": float(content["loss_scale"]), "_growth_tracker": int(content["loss_scale_good_steps"])}
        if scaler:
            self.step.scaler.load_state_dict(self.step.scaler.state_dict() | scaler)
        for name, value in self.circumstances.items():
            if content.get(name, value) != value:
                print(f"{name}: was {content[name]}, is {value}: from here on the run differs from an unchanged one")
        print(f"resuming from step {content['step']:,}")
        self.saved = content["step"]
        return self.saved

    def stop_at(self, done: int, signum: int) -> None:
        """Raises Stopped after the signal; 0: none came."""
        if signum:
            self.writing.wait()
            how = "run the same command again" + " without --resume" * (self.resume == "never")
            raise Stopped(signum, f"after step {done:,}, saved in {self.file}: {how} to resume")
