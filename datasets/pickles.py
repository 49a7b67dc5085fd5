"""Old data sets come pickled, and a pickle can run anything. This reader builds arrays and nothing else."""

import gzip
import io
import pickle
from pathlib import Path

import numpy as np

from datasets.errors import DataError

_RECONSTRUCT = np.empty(0).__reduce__()[0]  # what NumPy's own pickles call to make an empty array
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),  # how Python 3 writes bytes in protocol 2
}


class ArrayUnpickler(pickle.Unpickler):
    """Plain containers, numbers, text and NumPy arrays; any other name in the pickle is refused."""

    def find_class(self, module: str, name: str):
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")
        return _ALLOWED[module, name]


def load_arrays(file: Path):
    """The content of a pickle, gzipped if the name ends in .gz. Raises DataError; nothing in the file runs."""
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        return ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a broken pickle raises nearly anything
        raise DataError(f"{file} was not read: {' '.join(str(error).split())}") from error
