"""The 1,797 handwritten digits of 8x8 pixels that are included in scikit-learn (UCI optdigits)."""

from pathlib import Path

import numpy as np

from datasets.registry import DIGITS, data_labels, data_set

TRAIN = 1500  # scikit-learn defines no splits: here the first 1,500 digits are for training, the last 297 for testing
SPLITS = {"train": slice(TRAIN), "test": slice(TRAIN, None), "all": slice(None)}


@data_set("Digits")
def find_digits(data_path: Path, split: str, download: bool) -> np.ndarray:
    """uint8 (N, 8, 8). data_path and download are not used."""
    from sklearn.datasets import load_digits  # imported here because it takes a second

    return (load_digits().images * (255 / 16)).round().astype(np.uint8)[SPLITS[split]]  # the original range is 0 … 16


@data_labels("Digits")
def digit_labels(data_path: Path, split: str, found: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The digit of each picture."""
    from sklearn.datasets import load_digits

    return load_digits().target[SPLITS[split]], DIGITS
