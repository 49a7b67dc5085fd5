"""Weights to share: one set of weights as safetensors, with the recipe in the file's metadata."""

import json
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from utils.errors import CheckpointError, ConfigError
from utils.recipe import complete_recipe

VERSION = 1
KEY = "diffusion_pytorch"  # in the metadata


def facts_of(recipe: dict, weights: str, step: int) -> dict:
    """The metadata stored with shared weights ("ema" or "raw"), without local paths."""
    folder = recipe["data_name"] if recipe["dataset"] == "Folder" else recipe["dataset"]
    paths = {"data_path": f"data/{folder.lower()}", "save_dir": "train_results"}
    if recipe["init_from"]:
        paths["init_from"] = Path(recipe["init_from"]).name
    return {"version": VERSION, "weights": weights, "step": step, "recipe": recipe | paths}


def check_facts(text: str, file: Path) -> dict:
    """Reads that metadata. CheckpointError if it has a newer version or invalid values."""
    try:
        facts = json.loads(text)
        if facts["version"] != VERSION:
            raise CheckpointError(f"{file} has format {facts['version']}; this version reads format {VERSION}")
        if facts["weights"] not in ("ema", "raw") or not isinstance(facts["step"], int):
            raise ValueError(f"weights={facts['weights']!r}, step={facts['step']!r}")
        return facts | {"recipe": complete_recipe(facts["recipe"], f"{file}: its recipe")}
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file}: its metadata is invalid ({error!r})") from error


def save_shared_weights(file: Path, tensors: dict[str, Tensor], facts: dict, dtype: torch.dtype) -> None:
    """Writes the file, completely or not at all. CheckpointError for a weight outside the range of dtype."""
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{name} is outside the range of {str(dtype).removeprefix('torch.')}: use float32")
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_bytes(safetensors.torch.save(tensors, {KEY: json.dumps(facts)}))
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def load_shared_weights(file: Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors, in float32 on the CPU, and the metadata. Raises CheckpointError."""
    try:
        with safetensors.safe_open(file, "pt") as content:
            text = (content.metadata() or {}).get(KEY)
            tensors = {name: content.get_tensor(name).float() for name in content.keys()}
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} does not exist") from error
    except (OSError, safetensors.SafetensorError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{file} is damaged or not a safetensors file; nothing in it was run ({error})"
        ) from error
    if text is None:
        raise CheckpointError(
            f"{file} has no recipe: convert.py makes a file with one, from a checkpoint or a whole diffusers folder"
        )
    return tensors, check_facts(text, file)
