"""1,797 handwritten digits, 8x8 pixels, that come with scikit-learn (UCI optdigits)."""

from pathlib import Path

import numpy as np

from datasets.registry import data_set

TRAIN = 1500  # scikit-learn has them in one piece: the last 297 are kept apart as the test split


@data_set("Digits")
def find_digits(data_path: Path, split: str, download: bool) -> np.ndarray:
    """uint8 (N, 8, 8). Needs no data_path and no download."""
    from sklearn.datasets import load_digits  # at the point of use: it takes a second to import

    pictures = (load_digits().images * (255 / 16)).round().astype(np.uint8)  # 0 … 16 in the original
    return {"train": pictures[:TRAIN], "test": pictures[TRAIN:], "all": pictures}[split]
