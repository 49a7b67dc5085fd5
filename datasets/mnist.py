"""MNIST and Fashion-MNIST in all their file layouts: IDX files, torchvision's old .pt files, mnist.pkl.gz."""

import gzip
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import torch

from datasets.errors import DataError, find_or_fetch
from datasets.pickles import load_arrays
from datasets.registry import DIGITS, data_labels, data_set

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it
CLASSES = {"Mnist": "MNIST", "Fashion_Mnist": "FashionMNIST"}  # of torchvision, and their folders inside data_path
NAMES = {"train": ("training.pt", "train"), "test": ("test.pt", "t10k")}  # torchvision's before 2020, and of IDX files
WANTED = "train-images-idx3-ubyte.gz and t10k-images-idx3-ubyte.gz (or the same without .gz)"
CLOTHES = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]


def find_mnist(name: str, data_path: Path, split: str, download: bool) -> np.ndarray:
    """uint8 (N, 28, 28): 60,000 training and 10,000 test pictures."""
    return find_or_fetch(name, data_path, WANTED, partial(_find, name, data_path, split), download, CLASSES[name])


def mnist_labels(name: str, data_path: Path, split: str, found: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """From the same place as the pictures."""
    return _find(name, data_path, split, labels=True), DIGITS if name == "Mnist" else CLOTHES


for name in CLASSES:
    data_set(name)(partial(find_mnist, name))
    data_labels(name)(partial(mnist_labels, name))


def _find(name: str, data_path: Path, split: str, labels: bool = False) -> np.ndarray | None:
    """The pictures of a split in one of the layouts, or its labels; None if they are not all there.

    IDX files, with or without gzip, or torchvision's old .pt files; of Mnist the old mnist.pkl.gz, too.
    """
    pickled = data_path if data_path.is_file() else data_path / "mnist.pkl.gz"
    if name == "Mnist" and pickled.is_file():
        return _read_pickle(pickled, split)[labels]
    folders = [root / inside for root in (data_path, data_path / CLASSES[name]) for inside in ("", "raw", "processed")]
    folders += [DEBIAN_FASHION] * (name == "Fashion_Mnist")
    parts = [_part(folders, part, labels) for part in ("train", "test") if split in (part, "all")]
    return None if any(part is None for part in parts) else np.concatenate(parts)


def _part(folders: list[Path], part: str, labels: bool) -> np.ndarray | None:
    """The pictures or labels of "train" or "test" in the first folder that has its pictures."""
    pair, idx = NAMES[part]
    for folder in folders:
        if (folder / pair).is_file():
            file, array = folder / pair, _read_pair(folder / pair)[labels]
        elif (file := _idx_file(folder, f"{idx}-images-idx3-ubyte")).is_file():
            array = read_idx(_idx_file(folder, f"{idx}-labels-idx1-ubyte") if labels else file)
        else:
            continue
        if not labels and (array.ndim != 3 or array.dtype != np.uint8):
            raise DataError(f"{file} holds {array.dtype} of shape {array.shape}, not grey pictures")
        return array
    return None


def _idx_file(folder: Path, name: str) -> Path:
    """The unpacked file if there is one, else where the gzipped one belongs."""
    return folder / name if (folder / name).is_file() else folder / f"{name}.gz"


def read_idx(file: Path) -> np.ndarray:
    """The uint8 array in an IDX file of bytes, gzipped if the name ends in .gz.

    The format: two zero bytes, the type (8: bytes), the number of dimensions, each dimension as a big-endian int32, and
    then the bytes. Raises DataError if the file is missing, damaged or of another kind.
    """
    try:
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as stream:
            data = stream.read()
        if data[:3] != b"\0\0\x08":
            raise ValueError("not an IDX file of bytes")
        start = 4 + 4 * data[3]
        return np.frombuffer(data, np.uint8, offset=start).reshape(np.frombuffer(data[4:start], ">u4"))
    except (OSError, EOFError, zlib.error, IndexError, ValueError) as error:
        raise DataError(f"{file} is damaged or missing ({error}): download it again") from error


def _read_pair(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """torchvision's files before 2020: a pair of tensors, images uint8 (N, 28, 28) and labels (N,)."""
    try:
        images, labels = torch.load(file, weights_only=True, map_location="cpu")
        return images.numpy(), labels.numpy()
    except Exception as error:  # torch raises many types for damaged, unrelated and malicious files
        raise DataError(f"{file} is not torchvision's pair of images and labels") from error


def _read_pickle(file: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """mnist.pkl.gz: (train, validation, test), each (images, labels) with float images (N, 784) in [0, 1]."""
    sets = load_arrays(file)
    try:
        images, labels = zip(*{"train": sets[:2], "test": sets[2:], "all": sets}[split], strict=True)
        pictures, labels = np.concatenate(images).astype(float).reshape(-1, 28, 28), np.concatenate(labels)
        if not ((pictures >= 0) & (pictures <= 1)).all():  # False for NaN, too
            raise ValueError("pixels outside [0, 1]")
    except (TypeError, ValueError, KeyError) as error:
        raise DataError(f"{file} is a pickle, but not MNIST's three sets of images and labels ({error})") from error
    return (pictures * 255).round().astype(np.uint8), labels
