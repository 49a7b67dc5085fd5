"""Training checkpoints: {format, recipe, model, ema, optimizer, step, …}."""

import warnings
from pathlib import Path

import torch
from torch import Tensor

from files.atomic import writing
from files.errors import CheckpointError, ConfigError, DamagedCheckpointError, short
from files.seal import check_seal, seal
from runs.recipe import complete_recipe

FORMAT = 1


def load_checkpoint(file: Path) -> dict:
    """The content of a training checkpoint, on the CPU, with its recipe checked. No code in the file is run.

    Raises CheckpointError for a missing file or another kind of file, DamagedCheckpointError for a corrupted one.
    """
    return checked(torch_load(file), file)


def save_checkpoint(file: Path, content: dict, keep: int) -> None:
    """Writes the checkpoint so that a good one exists at any moment; the `keep` newest are kept, at least two.

    Those of a run that kept more before stay as they are.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with writing(file, _bytes(content)) as stream:
            torch.save({"format": FORMAT, **content}, stream)
            seal(stream)
            newest_first = [file, *(file.with_suffix(f".{i}.pt") for i in range(1, max(2, keep)))]
            for older, newer in reversed(list(zip(newest_first[1:], newest_first, strict=False))):
                if newer.exists():
                    newer.replace(older)
    except OSError as error:
        raise CheckpointError(f"{file} {error.strerror}. Older checkpoints are unchanged") from error


def _bytes(content) -> int:
    if isinstance(content, Tensor):
        return content.nbytes
    return sum(map(_bytes, content.values())) if isinstance(content, dict) else 0


def torch_load(file: Path):
    try:
        check_seal(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the pickles of other programs
            return torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except (OSError, MemoryError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    except Exception as error:  # PyTorch raises many types for truncated and foreign files, and for code in them
        why = f"{type(error).__name__}: {' '.join(str(error).split()).partition('. ')[0]}"
        raise DamagedCheckpointError(f"{file} is damaged or not a checkpoint; nothing in it was run ({why})") from error


def checked(content, file: Path) -> dict:
    if not isinstance(content, dict) or not {"format", "recipe", "model", "ema", "optimizer", "step"} <= content.keys():
        holds = short(list(content) if isinstance(content, dict) else content)
        raise CheckpointError(f"{file} is not a checkpoint of this project: it holds {holds}")
    if content["format"] != FORMAT:
        raise CheckpointError(f"{file} has format {short(content['format'])}; this version reads format {FORMAT}")
    try:
        return content | {"recipe": complete_recipe(content["recipe"], f"{file}: its recipe")}
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
