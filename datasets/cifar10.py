"""CIFAR-10 in the original Python format: pickled batches of 10,000 pictures."""

from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10

from datasets.errors import DataError, fetch
from datasets.pickles import load_arrays
from datasets.registry import data_set

BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}


@data_set("Cifar10")
def find_cifar10(data_path: Path, split: str, download: bool) -> np.ndarray:
    """uint8 (N, 32, 32, 3), RGB: 50,000 training and 10,000 test pictures.

    The batches may be in data_path or in its subfolder cifar-10-batches-py.
    """
    names = BATCHES["train"] + BATCHES["test"] if split == "all" else BATCHES[split]

    def find_folder() -> Path | None:
        folders = (data_path, data_path / "cifar-10-batches-py")
        return next((f for f in folders if all((f / name).is_file() for name in names)), None)

    folder = find_folder()
    if folder is None:
        wanted = "the folder cifar-10-batches-py (data_batch_1 … data_batch_5, test_batch)"
        fetch("Cifar10", data_path, wanted, download, lambda: CIFAR10(data_path, download=True))
        folder = find_folder()
    return np.concatenate([_read_batch(folder / name) for name in names])


def _read_batch(file: Path) -> np.ndarray:
    """uint8 (N, 32, 32, 3) from a pickled dict.

    Its entry "data" is uint8 (N, 3072): all red pixels of a picture row by row, then all green, then all blue ones.
    """
    content = load_arrays(file)
    data = content.get("data", content.get(b"data")) if isinstance(content, dict) else None
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise DataError(f"{file} is a pickle, but not a CIFAR-10 batch with 3072 bytes per picture")
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
