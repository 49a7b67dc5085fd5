"""Weights to share: one set of weights as safetensors, with the recipe in the file's metadata."""

import json
from pathlib import Path, PureWindowsPath

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from files.atomic import clear_parts, write_file
from files.errors import CheckpointError, ConfigError, DamagedCheckpointError, short
from files.seal import sha256_of
from runs.recipe import complete_recipe

VERSION = 1
KEY = "diffusion_pytorch"  # in the metadata
SEAL = "sha256"  # among the facts there: the checksum of the tensors and of the other facts


def facts_of(recipe: dict, weights: str, step: int) -> dict:
    """The metadata stored with shared weights ("ema" or "raw"), without local paths."""
    return {"version": VERSION, "weights": weights, "step": step, "recipe": _without_paths(recipe)}


def _without_paths(recipe: dict) -> dict:
    """The recipe with default places: a file that travels shows and chooses no folders."""
    folder = Path(recipe["data_name"]).name if recipe["dataset"] == "Folder" else recipe["dataset"]
    paths = {"data_path": f"data/{folder.lower()}", "save_dir": "train_results", "cache_dir": None}
    if recipe["init_from"]:
        paths["init_from"] = PureWindowsPath(recipe["init_from"]).name  # splits at both separators
    return recipe | paths


def check_facts(text: str, file: Path) -> dict:
    """Reads that metadata; paths in it are ignored. CheckpointError if it has a newer version or invalid values."""
    try:
        facts = json.loads(text)
        if facts["version"] != VERSION:
            raise CheckpointError(f"{file} has format {short(facts['version'])}; this version reads format {VERSION}")
        recipe = _without_paths(complete_recipe(facts["recipe"], "its recipe"))
        return {"recipe": recipe, "weights": facts["weights"], "step": int(facts["step"])}
    except (ConfigError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file}: its metadata is invalid ({error})") from error


def save_shared_weights(file: Path, tensors: dict[str, Tensor], facts: dict, dtype: torch.dtype) -> None:
    """Writes a new file. CheckpointError for a weight outside the range of dtype, FileExistsError if it exists."""
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{name} is outside the range of {str(dtype).removeprefix('torch.')}: use float32")
    file.parent.mkdir(parents=True, exist_ok=True)
    clear_parts(file.parent)
    facts = facts | {SEAL: sha256_of(tensors, json.dumps(facts))}
    write_file(file, safetensors.torch.save(tensors, {KEY: json.dumps(facts)}), exclusive=True)


def load_shared_weights(file: Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors, in float32 on the CPU, and the metadata. Raises CheckpointError."""
    try:
        with safetensors.safe_open(file, "pt") as content:
            text = (content.metadata() or {}).get(KEY)
            if text is None:
                raise CheckpointError(f"{file} has no recipe: convert.py makes files with one, also from a folder")
            facts = check_facts(text, file)
            tensors = {name: content.get_tensor(name) for name in content.keys()}
        told = json.loads(text)
        if SEAL in told and told.pop(SEAL) != sha256_of(tensors, json.dumps(told)):
            raise DamagedCheckpointError(f"{file} is damaged: its content does not match its checksum")
        return {name: tensor.float() for name, tensor in tensors.items()}, facts
    except (MemoryError, CheckpointError):
        raise
    except Exception as error:  # also for types of numbers that PyTorch does not know
        raise CheckpointError(f"{file} is damaged or not a safetensors file ({error})") from error
