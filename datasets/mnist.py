"""MNIST and Fashion-MNIST in all their file layouts: IDX files, torchvision's old .pt files, mnist.pkl.gz."""

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import MNIST, FashionMNIST

from datasets.errors import DataError, fetch
from datasets.pickles import load_arrays
from datasets.registry import DIGITS, data_labels, data_set

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it
IDX_FILES = "train-images-idx3-ubyte.gz and t10k-images-idx3-ubyte.gz (or the same without .gz)"
IDX_NAMES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
CLOTHES = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]


@data_set("Mnist")
def find_mnist(data_path: Path, split: str, download: bool) -> np.ndarray:
    """uint8 (N, 28, 28): 60,000 training and 10,000 test pictures.

    From IDX files, with or without gzip, torchvision's old .pt files, or the old mnist.pkl.gz.
    """
    if _pickle(data_path).is_file():
        return _read_mnist_pickle(_pickle(data_path), split)
    return _find_or_fetch("Mnist", MNIST, data_path, split, download, f"{IDX_FILES} or mnist.pkl.gz")


@data_set("Fashion_Mnist")
def find_fashion_mnist(data_path: Path, split: str, download: bool) -> np.ndarray:
    """uint8 (N, 28, 28): 60,000 training and 10,000 test pictures.

    From IDX files, with or without gzip, or torchvision's old .pt files; else from Debian's package, if installed.
    """
    wanted = f"{IDX_FILES} or processed/training.pt and test.pt"
    return _find_or_fetch("Fashion_Mnist", FashionMNIST, data_path, split, download, wanted)


@data_labels("Mnist")
def mnist_labels(data_path: Path, split: str, found: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """From the file with the pictures, or from the IDX file of labels beside theirs."""
    if _pickle(data_path).is_file():
        return _from_pickle(_pickle(data_path), split)[1], DIGITS
    return _find(data_path, "MNIST", split, labels=True), DIGITS


@data_labels("Fashion_Mnist")
def fashion_mnist_labels(data_path: Path, split: str, found: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """From the same place as the pictures."""
    return _find(data_path, "FashionMNIST", split, labels=True), CLOTHES


def _pickle(data_path: Path) -> Path:
    """Where mnist.pkl.gz is, if there is one."""
    return data_path if data_path.is_file() else data_path / "mnist.pkl.gz"


def _find_or_fetch(
    name: str, source: type[MNIST], data_path: Path, split: str, download: bool, wanted: str
) -> np.ndarray:
    """Where there are none, downloads the pictures with torchvision's class `source`; `wanted` as in `fetch`."""
    pictures = _find(data_path, source.__name__, split)
    if pictures is None:
        fetch(name, data_path, wanted, download, lambda: source(data_path, download=True))
        pictures = _find(data_path, source.__name__, split)
    if pictures is None:
        raise DataError(f"{name}: {data_path} has no {split} split, even after the download; put {wanted} there")
    return pictures


def _find(data_path: Path, name: str, split: str, labels: bool = False) -> np.ndarray | None:
    """The split in one of torchvision's layouts (before and since 2020), in data_path or its subfolder `name`.

    Of Fashion-MNIST also that of Debian's package.
    labels: its labels instead of its pictures.
    """
    parts = ("train", "test") if split == "all" else (split,)
    roots = (data_path, data_path / name)
    for folder in (place for root in roots for place in (root, root / "processed")):
        if (folder / "training.pt").is_file() and (folder / "test.pt").is_file():
            return np.concatenate([_read_processed(folder, part)[labels] for part in parts])
    for folder in [*roots, *(root / "raw" for root in roots)] + [DEBIAN_FASHION] * (name == "FashionMNIST"):
        files = [_idx_file(folder, IDX_NAMES[part]) for part in parts]
        if all(file.is_file() for file in files):
            if labels:
                names = [IDX_NAMES[part].replace("images-idx3", "labels-idx1") for part in parts]
                return np.concatenate([read_idx(_idx_file(folder, name)) for name in names])
            if folder == DEBIAN_FASHION:
                print(f"Fashion_Mnist: using {folder}")
            return np.concatenate([_checked(read_idx(file), file) for file in files])
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


def _read_mnist_pickle(file: Path, split: str) -> np.ndarray:
    """mnist.pkl.gz: (train, validation, test), each (images, labels) with float images (N, 784) in [0, 1]."""
    try:
        pictures = _from_pickle(file, split)[0].astype(np.float64).reshape(-1, 28, 28)
    except (TypeError, ValueError, KeyError) as error:
        raise DataError(f"{file} is a pickle, but not the three sets of 784-pixel images of MNIST") from error
    if not ((pictures >= 0) & (pictures <= 1)).all():  # False for NaN, too
        raise DataError(f"{file} holds pixels outside [0, 1], the range of MNIST's")
    return (pictures * 255).round().astype(np.uint8)


def _from_pickle(file: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of a split; "train" includes the validation split."""
    sets = load_arrays(file)
    chosen = {"train": sets[:2], "test": sets[2:], "all": sets}[split]
    images, labels = zip(*chosen, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _read_processed(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """torchvision's files before 2020: a pair of tensors, images uint8 (N, 28, 28) and labels (N,)."""
    file = folder / {"train": "training.pt", "test": "test.pt"}[part]
    try:
        images, labels = torch.load(file, weights_only=True, map_location="cpu")
        return _checked(images.numpy(), file), labels.numpy()
    except Exception as error:  # torch raises many types for damaged, unrelated and malicious files
        raise DataError(f"{file} is not torchvision's pair of images and labels") from error


def _checked(array: np.ndarray, file: Path) -> np.ndarray:
    """The array, if it can be grey pictures (N, H, W)."""
    if array.ndim != 3 or array.dtype != np.uint8:
        raise DataError(f"{file} holds {array.dtype} of shape {array.shape}, not grey pictures: uint8 (N, H, W)")
    return array
