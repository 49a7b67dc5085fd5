"""Checkpoints: {format, recipe, model, ema, optimizer, step}, written so that a good one always remains."""

import glob
import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import nn
from torch.optim import Optimizer

from diffusion import GaussianDiffusion
from models import build_model
from utils.config import DIFFUSION_KEYS, KEYS, MODEL_KEYS, RESUMABLE, changed_keys, check_recipe
from utils.errors import CheckpointError, ConfigError, DamagedCheckpointError
from utils.seal import Sealing, check_seal

try:
    import fcntl
except ImportError:  # Windows: no locks and no folders to sync
    fcntl = None

FORMAT = 1


@dataclass
class Run:
    """A trained network, in eval mode, with the diffusion and the recipe it was trained by."""

    model: nn.Module
    diffusion: GaussianDiffusion
    recipe: dict
    step: int


def build(recipe: dict) -> tuple[nn.Module, GaussianDiffusion]:
    """The network, freshly initialised, and the diffusion of a recipe; ConfigError if its values do not fit."""
    try:
        model = build_model(**{key: recipe[key] for key in MODEL_KEYS})
        return model, GaussianDiffusion(**{key: recipe[key] for key in DIFFUSION_KEYS})
    except ValueError as error:
        raise ConfigError(f"{recipe['data_name']}: {error}") from error


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Holds a run's folder, made where it is missing: CheckpointError if another training does. What a killed one had
    half written is removed. The hold ends with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with _opened(folder) as descriptor:
        try:
            if fcntl:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(f"another training is at work in {folder}: wait for it, or stop it") from error
        except OSError:  # a file system without locks
            pass
        for part in folder.glob("*.part"):
            part.unlink()
        yield


@contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """A descriptor of the folder, where folders have one."""
    descriptor = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        yield descriptor
    finally:
        if fcntl:
            os.close(descriptor)


def save_checkpoint(file: Path, content: dict, keep: int) -> None:
    """Writes beside `file`, syncs, and only then renames; the `keep` newest, at least two, stay: x.pt, x.1.pt, …"""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    try:
        with open(part, "wb") as stream:
            sealing = Sealing(stream)
            torch.save({"format": FORMAT, **content}, sealing)
            sealing.seal()
        ages = [file, *(file.with_suffix(f".{i}.pt") for i in range(1, max(2, keep)))]  # newest first
        for older, newer in reversed(list(zip(ages[1:], ages, strict=False))):
            if newer.exists():
                newer.replace(older)
        part.replace(file)
        _sync_folder(file.parent)
    except (RuntimeError, OSError) as error:  # torch's writer makes a RuntimeError of a full disk
        reason = " ".join(str(error).split())
        needed, free = _bytes(content) / 2**20, shutil.disk_usage(file.parent).free / 2**20
        raise CheckpointError(
            f"{file} was not written ({reason}): it takes {needed:,.1f} MiB, and {free:,.1f} MiB are free there. "
            "Older checkpoints stay"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _bytes(content) -> int:
    if isinstance(content, torch.Tensor):
        return content.nbytes
    return sum(map(_bytes, content.values())) if isinstance(content, dict) else 0


def _sync_folder(folder: Path) -> None:
    """The renames are on the disk when this returns."""
    with _opened(folder) as descriptor:
        if fcntl:
            os.fsync(descriptor)


def save_recipe(file: Path, recipe: dict) -> None:
    """The recipe as YAML, for people; in place of an older one only when it is written."""
    part = file.with_suffix(".part")
    try:
        part.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def find_checkpoint(file: Path, resume: str) -> dict | None:
    """The content to go on from: `resume` is auto, never or a path; None starts anew.

    auto takes the newest of `file` and its predecessors that is whole; damaged ones are set aside, named.
    Nothing is ever restarted over an older run: CheckpointError if all are damaged, if one cannot be
    read for another reason, or if another start would write over what is there.
    """
    kept = [file, *sorted(file.parent.glob(f"{glob.escape(file.stem)}.*.pt"), key=_age)]
    kept = [candidate for candidate in kept if candidate.exists()]
    if resume != "auto":
        if kept and (resume == "never" or Path(resume).resolve() != kept[0].resolve()):
            raise CheckpointError(
                f"{kept[0]} exists and would be written over: leave --resume away to go on from it, set another "
                "pth_save_name or save_dir, or move it away"
            )
        return None if resume == "never" else load_checkpoint(Path(resume))
    for i, candidate in enumerate(kept):
        try:
            content = load_checkpoint(candidate)
        except DamagedCheckpointError as error:
            print(error, file=sys.stderr)
            continue
        for damaged in kept[:i]:  # or the next save would push the good one out
            print(f"set aside as {damaged.replace(damaged.with_name(damaged.name + '.damaged'))}", file=sys.stderr)
        return content
    if kept:
        raise CheckpointError(f"no good checkpoint among {', '.join(map(str, kept))}: move them away to start anew")
    return None


def _age(file: Path) -> int:
    number = file.suffixes[-2][1:]
    return int(number) if number.isdigit() else sys.maxsize


def check_same_run(content: dict, recipe: dict) -> None:
    """Prints every key that differs from the checkpoint's; CheckpointError with those that may not."""
    if changed := changed_keys(content["recipe"], recipe, set(KEYS) - RESUMABLE):
        raise CheckpointError(
            f"the checkpoint to go on from was trained otherwise ({'; '.join(changed)}): "
            "keep these keys, or train under another pth_save_name"
        )
    for change in changed_keys(content["recipe"], recipe, RESUMABLE):
        print(change)


def load_into(content: dict, model: nn.Module, ema: nn.Module, optimizer: Optimizer, circumstances: dict) -> int:
    """Puts a checkpoint into a training; returns the number of steps it has done.

    circumstances: other items of the content, which may differ; this is then said.
    """
    load_weights(model, content["model"], "the checkpoint")
    load_weights(ema, content["ema"], "the checkpoint")
    try:  # how the optimizer works comes from the recipe, from the file its state alone
        optimizer.load_state_dict({**optimizer.state_dict(), "state": content["optimizer"]["state"]})
        for weight, state in optimizer.state.items():  # in the weight's own layout in memory, as fused kernels take it
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment] = torch.empty_like(weight).copy_(state[moment])
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the checkpoint's optimizer state does not fit: {error}") from error
    for name, value in circumstances.items():
        if content.get(name, value) != value:
            print(f"{name}: were {content[name]}, are {value}: from here on the run is another")
    print(f"going on from step {content['step']:,}")
    return content["step"]


def load_checkpoint(file: Path) -> dict:
    """A training checkpoint's content, on the CPU, its recipe checked. Nothing in the file is run.

    Raises CheckpointError, in one line, for a file that is missing, foreign or not plain tensors, and its
    subclass DamagedCheckpointError for one that is cut or garbled.
    """
    try:
        check_seal(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except DamagedCheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} does not exist") from error
    except (OSError, MemoryError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise CheckpointError(f"{file} holds more than tensors and plain values; nothing in it was run") from error
        raise DamagedCheckpointError(f"{file} is damaged or no checkpoint; nothing in it was run") from error
    except Exception as error:  # cut short, or another format: torch raises many kinds
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise DamagedCheckpointError(
            f"{file} is damaged or no checkpoint ({type(error).__name__}: {reason})"
        ) from error
    if not isinstance(content, dict) or not {"format", "recipe", "model", "ema", "optimizer", "step"} <= content.keys():
        raise CheckpointError(f"{file} is no checkpoint of this project: {_what_it_holds(content)}")
    if not isinstance(content["format"], int) or content["format"] != FORMAT:
        raise CheckpointError(f"{file} has format {content['format']}; this version reads format {FORMAT}")
    if not isinstance(content["step"], int) or content["step"] < 0:
        raise CheckpointError(f"{file}: its step is {content['step']!r}, not a number of steps")
    recipe, missing = content["recipe"], []
    if isinstance(recipe, dict):
        missing = [key for key in ("data_name", "dataset", *MODEL_KEYS, *DIFFUSION_KEYS) if key not in recipe]
    if missing or not isinstance(recipe, dict):
        raise CheckpointError(f"{file}: its recipe lacks {', '.join(missing) or 'everything'}")
    try:
        loop = {key: KEYS[key].default for key in KEYS if key not in recipe}  # younger than the checkpoint
        content["recipe"] = check_recipe(recipe | loop, f"{file}: its recipe")
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    return content


def load_run(file: str | Path, weights: str = "ema") -> Run:
    """The run in a checkpoint, on the CPU: `weights` "ema" (averaged) or "raw" (as the optimizer left them)."""
    file = Path(file)
    content = load_checkpoint(file)
    try:
        model, diffusion = build(content["recipe"])
    except ConfigError as error:
        raise CheckpointError(f"{file}: its recipe: {error}") from error
    load_weights(model, content[{"ema": "ema", "raw": "model"}[weights]], file)
    return Run(model.eval(), diffusion, content["recipe"], content["step"])


def load_weights(model: nn.Module, weights: dict, file: Path | str) -> None:
    """load_state_dict, strict; CheckpointError with the first name or shape that does not fit or is not finite."""
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise CheckpointError(f"{file}: its weights do not fit its recipe: {' '.join(lines[1:2] or lines)}") from error
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise CheckpointError(f"{file}: its weight {name} is not finite: take an older checkpoint")


def _what_it_holds(content) -> str:
    if not isinstance(content, dict):
        return f"it holds a {type(content).__name__}"
    return f"it holds {', '.join(map(str, list(content)[:5])) or 'nothing'}"
