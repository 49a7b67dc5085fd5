"""A safe reader for data sets that are distributed as pickles.

Loading a pickle can run arbitrary code. This reader only builds plain containers and NumPy arrays.
"""

import gzip
import pickle
from pathlib import Path

import numpy as np

from datasets.errors import DataError

_RECONSTRUCT = np.empty(0).__reduce__()[0]  # the function that NumPy's pickles call to create an empty array
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),  # bytes of Python 3 in protocol 2
}


class ArrayUnpickler(pickle.Unpickler):
    """Reads containers, numbers, text and NumPy arrays. Any other class or function raises UnpicklingError."""

    def find_class(self, module: str, name: str):
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not part of an array")
        return _ALLOWED[module, name]


def load_arrays(file: Path):
    """The content of a pickle, gzipped if the name ends in .gz; text of Python 2 is decoded as Latin-1.

    Raises DataError if it is damaged, or holds anything else than `ArrayUnpickler` reads. No code in it is run.
    """
    try:
        with gzip.open(file) if file.suffix == ".gz" else open(file, "rb") as stream:
            return ArrayUnpickler(stream, encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise any type
        raise DataError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
