"""The table of loaders. To add a data set, write its loader in a new file of this folder and decorate it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

Loader = Callable[[Path, str, bool], np.ndarray | list[Path]]  # (data_path, split, download), see `find_images`
LOADERS: dict[str, Loader] = {}


def data_set(name: str) -> Callable[[Loader], Loader]:
    """A decorator that registers a loader as LOADERS[name].

    name: the name of a block of config.yaml. The block, and every block that is based on it, then uses this loader.
    """

    def register(loader: Loader) -> Loader:
        LOADERS[name] = loader
        return loader

    return register
