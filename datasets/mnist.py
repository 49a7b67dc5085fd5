"""MNIST and Fashion-MNIST, in every layout they are found in."""

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import MNIST, FashionMNIST

from datasets.errors import DataError, fetch
from datasets.pickles import load_arrays
from datasets.registry import data_set

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
IDX_FILES = "train-images-idx3-ubyte.gz and t10k-images-idx3-ubyte.gz (or the same without .gz)"


@data_set("Mnist")
def find_mnist(data_path: Path, split: str, download: bool) -> np.ndarray:
    """uint8 (N, 28, 28): 60,000 to train, 10,000 to test. IDX files, gzipped or not, or the old mnist.pkl.gz."""
    pickle = data_path if data_path.is_file() else data_path / "mnist.pkl.gz"
    if pickle.is_file():
        return _read_mnist_pickle(pickle, split)
    return _find_or_fetch("Mnist", MNIST, data_path, split, download, f"{IDX_FILES} or mnist.pkl.gz")


@data_set("Fashion_Mnist")
def find_fashion_mnist(data_path: Path, split: str, download: bool) -> np.ndarray:
    """uint8 (N, 28, 28): 60,000 to train, 10,000 to test. IDX files (Debian's are found by themselves) or old .pt."""
    found = _find(data_path, "FashionMNIST", split)
    if found is None and (found := _read_idx_folder([DEBIAN_FASHION], split)) is not None:
        print(f"Fashion_Mnist: nothing in {data_path}, taken from {DEBIAN_FASHION}")
    if found is not None:
        return found
    wanted = f"{IDX_FILES} or processed/training.pt and test.pt"
    return _find_or_fetch("Fashion_Mnist", FashionMNIST, data_path, split, download, wanted)


def _find_or_fetch(name: str, source: type[MNIST], data_path: Path, split: str, download: bool, wanted: str):
    found = _find(data_path, source.__name__, split)
    if found is None:
        fetch(name, data_path, wanted, download, lambda: source(data_path, download=True))
        found = _find(data_path, source.__name__, split)
    if found is None:
        raise DataError(f"{name}: the download left no {split} split in {data_path}; put {wanted} there")
    return found


def _find(data_path: Path, name: str, split: str) -> np.ndarray | None:
    """The split in any of torchvision's layouts, of today or of before 2020, at data_path or in its folder `name`."""
    roots = [data_path, data_path / name]
    for folder in (folder for root in roots for folder in (root, root / "processed")):
        if (folder / "training.pt").is_file() and (folder / "test.pt").is_file():
            return _by_split(split, lambda part, at=folder: _read_processed(at, part))
    return _read_idx_folder([*roots, *(root / "raw" for root in roots)], split)


def read_idx(file: Path) -> np.ndarray:
    """An IDX file of bytes, gzipped or not: two zeros, type 8, the number of dimensions, each as big-endian int32."""
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file} is damaged ({error}): fetch it again") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise DataError(f"{file} is not an IDX file of bytes")
    start = 4 + 4 * data[3]
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4)]
    if len(data) != start + int(np.prod(shape, dtype=object)):
        raise DataError(f"{file} is cut short: {len(data)} bytes do not hold {'x'.join(map(str, shape))}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _by_split(split: str, read) -> np.ndarray:
    parts = ("train", "test") if split == "all" else (split,)
    return np.concatenate([read(part) for part in parts])


def _read_idx_folder(folders: list[Path], split: str) -> np.ndarray | None:
    """The split from the first folder that has its image files; None if no folder has."""
    names = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}

    def file_of(folder: Path, part: str) -> Path | None:
        return next((f for f in (folder / f"{names[part]}.gz", folder / names[part]) if f.is_file()), None)

    for folder in folders:
        if all(file_of(folder, part) for part in (names if split == "all" else [split])):
            return _by_split(split, lambda part, at=folder: _pictures(read_idx(file_of(at, part)), at))
    return None


def _read_mnist_pickle(file: Path, split: str) -> np.ndarray:
    """mnist.pkl.gz: (train, validation, test), each (images float (N, 784) in [0, 1], labels)."""
    content = load_arrays(file)
    try:
        train, validation, test = (np.asarray(images, np.float64).reshape(-1, 28, 28) for images, _ in content)
    except (TypeError, ValueError) as error:
        raise DataError(f"{file} is a pickle, but not of MNIST's three sets of 784-pixel images") from error
    pictures = {"train": np.concatenate([train, validation]), "test": test}
    return _by_split(split, lambda part: (pictures[part] * 255).round().clip(0, 255).astype(np.uint8))


def _read_processed(folder: Path, part: str) -> np.ndarray:
    """torchvision's files of before 2020: a (images uint8 (N, 28, 28), labels) pair of tensors."""
    file = folder / {"train": "training.pt", "test": "test.pt"}[part]
    try:
        images, _ = torch.load(file, weights_only=True, map_location="cpu")
        return _pictures(images.numpy(), file)
    except Exception as error:  # cut short, foreign or malicious: torch raises many kinds
        raise DataError(f"{file} is not torchvision's pair of images and labels") from error


def _pictures(array: np.ndarray, source: Path) -> np.ndarray:
    if array.ndim != 3 or array.dtype != np.uint8:
        raise DataError(f"{source} has no grey pictures but {array.dtype} of shape {array.shape}")
    return array
