"""Resuming a run: the lock on its folder, the checkpoint to resume from, whether it is the same run, and its state."""

import glob
import hashlib
import math
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PureWindowsPath

import numpy as np
import torch
import yaml
from filelock import FileLock, Timeout

from files.atomic import clear_parts, write_file
from files.errors import CheckpointError, DamagedCheckpointError, TrainingError
from runs.checkpoint import load_checkpoint, save_checkpoint
from runs.network import EXPLODED, largest_weight, load_state
from runs.recipe import RESUMABLE, changed_keys
from training.background import Background
from training.optimizer import learning_rate
from training.plan import total_steps
from training.step import TrainingStep


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Locks a run's folder and removes old parts from it. CheckpointError if another training holds the lock."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise CheckpointError(f"another training is running in {folder}: wait for it, or stop it") from error
    except OSError as error:
        raise CheckpointError(f"{folder}: {error.strerror}: set another pth_save_name or save_dir") from error
    with lock:
        clear_parts(folder)
        yield


def find_checkpoint(file: Path, resume: str) -> dict | None:
    """The content of the checkpoint to resume from, or None for a new run. resume: "auto" or "never".

    "auto" takes the newest undamaged one of `file` and its predecessors, and renames damaged ones. A run is never
    overwritten: CheckpointError if all are damaged, if one cannot be read, and for "never" where there are any.
    """
    older = file.parent.glob(f"{glob.escape(file.stem)}.[0-9]*.pt")
    kept = [file] * file.exists() + sorted(older, key=lambda file: (len(file.name), file.name))  # .9.pt before .10.pt
    if kept and resume == "never":
        remedy = "remove --resume never to resume it, set another pth_save_name or save_dir, or move it away"
        raise CheckpointError(f"{kept[0]} exists and would be overwritten: {remedy}")
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
        raise CheckpointError(f"all checkpoints are damaged ({', '.join(map(str, kept))}): move them to start anew")
    return None


def begun(recipe: dict, folder: Path, resume: str) -> tuple[dict, dict | None]:
    """(recipe, last): what a run trains, and its last checkpoint, None for a new run; see `find_checkpoint`.

    Of a run that has begun the recipe has the speed that was measured then. Prints the keys that differ from the
    checkpoint's; CheckpointError for those that must not. Of init_from only the name counts: the file may have been
    moved, and the run, too, from Windows to Linux.
    """
    last = find_checkpoint(folder / f"{folder.name}.pt", resume)
    if last is None:
        return recipe.copy(), None
    recipe = recipe | {key: recipe[key] or last["recipe"].get(key) for key in ("steps_per_minute", "teacher_sha256")}
    was, now = _compared(last["recipe"]), _compared(recipe)
    if changed := changed_keys(was, now, now.keys() - RESUMABLE):
        less_memory = " (gradient_accumulation may change, and saves memory)" * (was["batch_size"] != now["batch_size"])
        gone = set(was["class_names"] or ()) - set(now["class_names"] or was["class_names"] or ())
        no_pictures = f" (a folder without pictures is no class: {', '.join(sorted(gone))})" if gone else ""
        teacher = f" ({recipe['init_from']} has changed since)" * (was["teacher_sha256"] != now["teacher_sha256"])
        raise CheckpointError(
            f"the checkpoint is from a run with other settings ({'; '.join(changed)}): use the old values{less_memory}"
            f"{teacher}, or set another pth_save_name{no_pictures}"
        )
    for change in changed_keys(was, now, RESUMABLE):
        print(change)
    return recipe, last


def _compared(recipe: dict) -> dict:
    """The recipe as `begun` compares it. Runs from before feature_weight learned from pixels alone."""
    name = recipe["init_from"] and PureWindowsPath(recipe["init_from"]).name  # splits at both separators
    unused = {} if recipe["trajectories"] else {"feature_weight": None, "teacher_guidance": None}
    return recipe | {"feature_weight": recipe["feature_weight"] or 0.0} | unused | {"init_from": name}


def fingerprint(images: np.ndarray) -> str:
    """16 hex digits that change with the pictures (N, C, H, W), from 256 of them, wherever they are stored."""
    rows = np.linspace(0, len(images) - 1, 256).astype(int)
    return hashlib.sha256(images[rows].tobytes()).hexdigest()[:16]


class TrainingState:
    """What a checkpoint holds of a training: network, average and optimizer; and its circumstances, the pictures,
    the processes and how they compute. A run that is resumed in others goes on, but differently.

    On a GPU a thread writes it, from a copy in the host's memory. until_exit: waits for the thread.
    """

    def __init__(self, folder: Path, step: TrainingStep, images: np.ndarray, until_exit: ExitStack):
        self.file, self.step = folder / f"{folder.name}.pt", step
        self.writing = until_exit.enter_context(Background(threaded=step.processes.device.type == "cuda"))
        self.circumstances = {"images": len(images), "pictures": fingerprint(images), "processes": step.processes.world}
        self.circumstances |= step.way

    def save(self, done: int) -> None:
        """Rank 0 writes the checkpoint after `done` steps. TrainingError if the weights have exploded."""
        step = self.step
        if step.processes.rank:
            return
        if (largest := largest_weight(step.model)) > EXPLODED:
            raise TrainingError(
                f"the training has diverged: after step {done:,} its weights reach {largest:.1e}. This is not saved: "
                "lower learning_rate or set grad_clip, and run the command again; it resumes from the last checkpoint, "
                "if there is one"
            )
        content = {"recipe": step.recipe, "step": done, **self.circumstances, "scaler": step.scaler.state_dict()}
        parts = {"optimizer": step.optimizer, "model": step.model, "ema": step.ema.model}
        if step.critic:
            parts |= {"critic": step.critic, "critic_optimizer": step.optimizers[1]}
        content |= {name: part.state_dict() for name, part in parts.items()}
        self.writing.start(save_checkpoint, self.file, content, step.recipe["keep_checkpoints"])

    def save_recipe(self) -> None:
        """Writes recipe.yaml: for people, and for a run that is cut short before its first checkpoint."""
        write_file(self.file.with_name("recipe.yaml"), yaml.safe_dump(self.step.recipe, sort_keys=False))

    def restore(self, content: dict, steps_per_epoch: int) -> int:
        """Restores a checkpoint and prints what is different now. Returns the steps done. CheckpointError if unfit."""
        load_state(self.step.model, content["model"], "the checkpoint")
        load_state(self.step.ema.model, content["ema"], "the checkpoint")
        if self.step.critic and "critic" in content:  # it may have been switched on since
            self.step.critic.load_state_dict(content["critic"])
        for name, optimizer in zip(("optimizer", "critic_optimizer"), self.step.optimizers, strict=False):
            if name not in content:
                continue
            # only the state comes from the file; the settings of the optimizer come from the recipe
            optimizer.load_state_dict({**optimizer.state_dict(), "state": content[name]["state"]})
            for weight, known in optimizer.state.items():
                for key, value in known.items():
                    if value.shape == weight.shape:  # an average: fused kernels need the memory layout of the weight
                        known[key] = torch.empty_like(weight).copy_(value)
        scaler = content.get("scaler") or {}
        if "loss_scale" in content:  # of an earlier version
            scaler = {"scale": float(content["loss_scale"]), "_growth_tracker": int(content["loss_scale_good_steps"])}
        self.step.scaler.load_state_dict(self.step.scaler.state_dict() | scaler)
        for name, value in self.circumstances.items():
            if content.get(name, value) != value:
                print(f"{name}: was {content[name]}, is {value}: from here on the run differs from an unchanged one")
        done, old, new = content["step"], content["recipe"], self.step.recipe
        lengths = [(recipe, total_steps(recipe, steps_per_epoch)) for recipe in (old, new)]
        was, now = (learning_rate(recipe, min(done, steps - 1), steps) for recipe, steps in lengths)
        if not math.isclose(was, now, rel_tol=0.01, abs_tol=1e-12):
            print(f"learning rate: was {was:.2g} at step {done:,}, is {now:.2g}, by the new settings and length")
        print(f"resuming from step {done:,}")
        return done
