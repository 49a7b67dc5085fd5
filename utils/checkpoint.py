"""Checkpoints: {format, recipe, model, ema, optimizer, step}, written so that a good one always remains."""

import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import nn

from diffusion import GaussianDiffusion
from models import build_model
from utils.errors import CheckpointError, ConfigError, DamagedCheckpointError
from utils.published import from_published, is_published
from utils.recipe import DIFFUSION_KEYS, MODEL_KEYS, complete_recipe
from utils.seal import Sealing, check_seal
from utils.weights import load_weights_file

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
    weights: str  # "ema" (averaged) or "raw"


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


def load_checkpoint(file: Path) -> dict:
    """A training checkpoint's content, on the CPU, its recipe checked. Nothing in the file is run.

    Raises CheckpointError, in one line, for a file that is missing, foreign or not plain tensors, and its
    subclass DamagedCheckpointError for one that is cut or garbled.
    """
    return _checked(_torch_load(file), file)


def _torch_load(file: Path):
    try:
        check_seal(file)
        return torch.load(file, map_location="cpu", weights_only=True)
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


def _checked(content, file: Path) -> dict:
    if not isinstance(content, dict) or not {"format", "recipe", "model", "ema", "optimizer", "step"} <= content.keys():
        raise CheckpointError(f"{file} is no checkpoint of this project: {_what_it_holds(content)}")
    if not isinstance(content["format"], int) or content["format"] != FORMAT:
        raise CheckpointError(f"{file} has format {content['format']}; this version reads format {FORMAT}")
    if not isinstance(content["step"], int) or content["step"] < 0:
        raise CheckpointError(f"{file}: its step is {content['step']!r}, not a number of steps")
    try:
        return content | {"recipe": complete_recipe(content["recipe"], f"{file}: its recipe")}
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def load_run(file: str | Path, weights: str = "ema", **given) -> Run:
    """The run in a training checkpoint, a .safetensors with its recipe or a published checkpoint, on the CPU.

    weights: "ema" (averaged, where the file has them) or "raw" (as the optimizer left them).
    given: keys of the recipe, or None, which must be as they are in the file (ConfigError); a published checkpoint,
    which has no recipe, takes them from here and needs image_size.
    """
    file, step = Path(file), 0
    if file.is_dir():
        raise CheckpointError(f"{file} is a folder: convert.py makes a .safetensors of a diffusers folder")
    if file.suffix == ".safetensors":
        tensors, facts = load_weights_file(file)
        recipe, step, has = facts["recipe"], facts["step"], facts["weights"]
    elif is_published(content := _torch_load(file)):
        (tensors, recipe), has = from_published(content, file, given), "raw"
    else:
        content = _checked(content, file)
        tensors, recipe = content[{"ema": "ema", "raw": "model"}[weights]], content["recipe"]
        step, has = content["step"], weights
    check_given(recipe, has, file, weights, given)
    try:
        model, diffusion = build(recipe)
    except ConfigError as error:
        raise CheckpointError(f"{file}: its recipe: {error}") from error
    load_weights(model, tensors, file)
    return Run(model.eval(), diffusion, recipe, step, has)


def check_given(recipe: dict, has: str, file: Path, weights: str, given: dict) -> None:
    """CheckpointError for raw weights of a file that has others, ConfigError for a key that is given, not None, and
    otherwise in its recipe."""
    if weights == "raw" != has:
        raise CheckpointError(f"{file} holds only the averaged weights")
    for key, value in given.items():
        if value is not None and value != recipe[key]:
            raise ConfigError(f"{key}={value}: {file} was trained with {recipe[key]}")


def load_weights(model: nn.Module, weights: dict, file: Path | str) -> None:
    """load_state_dict, strict; CheckpointError with the first name or shape that does not fit or is not finite."""
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise CheckpointError(f"{file}: its weights do not fit the network: {' '.join(lines[1:2] or lines)}") from error
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise CheckpointError(f"{file}: its weight {name} is not finite: take an older checkpoint")


def _what_it_holds(content) -> str:
    if not isinstance(content, dict):
        return f"it holds a {type(content).__name__}"
    return f"it holds {', '.join(map(str, list(content)[:5])) or 'nothing'}"
