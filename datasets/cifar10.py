"""CIFAR-10 in the original Python format: pickled batches of 10,000 pictures."""

from functools import partial
from pathlib import Path

import numpy as np

from datasets.errors import DataError, find_or_fetch
from datasets.pickles import load_arrays
from datasets.registry import data_labels, data_set

BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@data_set("Cifar10")
def find_cifar10(data_path: Path, split: str, download: bool) -> np.ndarray:
    """uint8 (N, 32, 32, 3), RGB: 50,000 training and 10,000 test pictures."""
    wanted = "the folder cifar-10-batches-py (data_batch_1 … data_batch_5, test_batch)"
    files = find_or_fetch("Cifar10", data_path, wanted, partial(_batches, data_path, split), download, "CIFAR10")
    batches = {file: _entry(file, "data") for file in files}
    for file, data in batches.items():
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
            raise DataError(f"{file} is a pickle, but not a CIFAR-10 batch with 3072 bytes per picture")
    # of each picture all red pixels row by row, then all green, then all blue ones
    return np.concatenate([*batches.values()]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


@data_labels("Cifar10")
def cifar10_labels(data_path: Path, split: str, found: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """From the same batches."""
    return np.concatenate([_entry(file, "labels") for file in _batches(data_path, split)]), CLASSES


def _batches(data_path: Path, split: str) -> list[Path]:
    """The files of a split, in data_path or its subfolder cifar-10-batches-py; [] if they are not all in one."""
    names = BATCHES["train"] + BATCHES["test"] if split == "all" else BATCHES[split]
    for folder in (data_path, data_path / "cifar-10-batches-py"):
        files = [folder / name for name in names]
        if all(file.is_file() for file in files):
            return files
    return []


def _entry(file: Path, key: str):
    """An entry of a pickled dict, whose keys may be texts or bytes. None if it has no such entry."""
    content = load_arrays(file)
    return content.get(key, content.get(key.encode())) if isinstance(content, dict) else None
