"""Weights to share: one set of them, as safetensors, with the recipe and what else is known in the file's metadata."""

import json
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from utils.errors import CheckpointError, ConfigError
from utils.recipe import complete_recipe

VERSION = 1
KEY = "diffusion_pytorch"  # of the metadata


def facts_of(recipe: dict, weights: str, step: int) -> dict:
    """What is told of shared weights ("ema" or "raw"), plain. Places on one's own machine are not."""
    folder = recipe["data_name"] if recipe["dataset"] == "Folder" else recipe["dataset"]
    places = {"data_path": f"data/{folder.lower()}", "save_dir": "train_results"}
    if recipe["init_from"]:
        places["init_from"] = Path(recipe["init_from"]).name
    return {"version": VERSION, "weights": weights, "step": step, "recipe": recipe | places}


def check_facts(text: str, file: Path) -> dict:
    """Those facts out of a file, checked; CheckpointError if they are of a newer version or make no sense."""
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
        raise CheckpointError(f"{file}: what it tells of its weights makes no sense ({error!r})") from error


def save_weights(file: Path, tensors: dict[str, Tensor], facts: dict, dtype: torch.dtype) -> None:
    """Writes the file, whole or not at all. CheckpointError for a weight beyond what dtype can hold."""
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{name} is beyond the range of {str(dtype).removeprefix('torch.')}: take float32")
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_bytes(safetensors.torch.save(tensors, {KEY: json.dumps(facts)}))
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def load_weights_file(file: Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors, in float32 on the CPU, and the facts. CheckpointError, in one line, for anything else."""
    try:
        with safetensors.safe_open(file, "pt") as content:
            text = (content.metadata() or {}).get(KEY)
            tensors = {name: content.get_tensor(name).float() for name in content.keys()}
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} does not exist") from error
    except (OSError, safetensors.SafetensorError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is damaged or no safetensors file; nothing in it was run ({error})") from error
    if text is None:
        raise CheckpointError(
            f"{file} carries no recipe: convert.py makes such a file of a checkpoint or of a whole diffusers folder"
        )
    return tensors, check_facts(text, file)
