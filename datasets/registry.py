"""The table of data sets. Each module of this folder enters its own: a new data set is one new file here."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

Loader = Callable[[Path, str, bool], np.ndarray | list[Path]]  # (data_path, split, download), see find_images
LOADERS: dict[str, Loader] = {}


def data_set(name: str) -> Callable[[Loader], Loader]:
    """Decorates the loader of the data set `name`: the name that a block of config.yaml has, or is based on."""

    def register(loader: Loader) -> Loader:
        LOADERS[name] = loader
        return loader

    return register
