"""Pictures in their own sizes to one uint8 array; picture files are decoded once, into a cache file.

The cache stands in a hidden folder of the data's own folder, as raw rows. Its name holds what it was
made from, so that other files, another size or another split never meet a wrong cache, and its number
of rows, so that a cut file is noticed:   .cache/train_64px_3ch_<fingerprint>_<rows>.u8
"""

import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.errors import DataError
from datasets.folder import open_picture
from datasets.pixels import fit_picture


def fit_array(pictures: np.ndarray, image_size: int, image_channel: int) -> np.ndarray:
    """uint8 (N, H, W) or (N, H, W, 3) to (N, image_channel, image_size, image_size)."""
    channels = 1 if pictures.ndim == 3 else 3
    if pictures.shape[1:3] == (image_size, image_size) and channels == image_channel:
        return np.ascontiguousarray(pictures.reshape(-1, image_size, image_size, channels).transpose(0, 3, 1, 2))
    fitted = np.empty((len(pictures), image_channel, image_size, image_size), np.uint8)
    for i, picture in enumerate(tqdm(pictures, desc="resizing", unit="img", leave=False)):
        fitted[i] = fit_picture(Image.fromarray(picture), image_size, image_channel)
    return fitted


def fit_files(files: list[Path], data_path: Path, split: str, image_size: int, image_channel: int) -> np.ndarray:
    """Picture files to uint8 (N, image_channel, image_size, image_size), memory-mapped from the cache.

    A file that is no picture is named on stderr and skipped. Where the folder cannot be written, the
    array stays in memory, with a word on stderr.
    """
    shape = (image_channel, image_size, image_size)
    prefix = f"{split}_{image_size}px_{image_channel}ch"
    stem = f"{prefix}_{_fingerprint(files, data_path)}"
    folder = data_path / ".cache"
    for cache in folder.glob(f"{stem}_[0-9]*.u8"):
        rows = int(cache.stem.rsplit("_", 1)[1])
        if cache.stat().st_size == rows * int(np.prod(shape)):
            print(f"{rows} pictures from the cache {cache}")
            return np.memmap(cache, np.uint8, "r", shape=(rows, *shape))
        print(f"the cache {cache} is cut short: decoding the pictures again", file=sys.stderr)
    rows = _decoded(files, image_size, image_channel)
    part = folder / f"{stem}.{os.getpid()}.part"
    try:
        folder.mkdir(exist_ok=True)
        part.touch()
    except OSError as error:
        print(f"no cache beside the pictures ({error}): kept in memory, decoded again next time", file=sys.stderr)
        pictures, count = np.empty((len(files), *shape), np.uint8), 0
        for count, row in enumerate(rows, 1):
            pictures[count - 1] = row
        return pictures[:count]
    try:
        count = 0
        with open(part, "wb") as file:
            for row in rows:
                file.write(row.tobytes())
                count += 1
        for stale in set(folder.glob(f"{prefix}_*")) - {part}:
            stale.unlink(missing_ok=True)
        cache = part.rename(folder / f"{stem}_{count}.u8")
    except OSError as error:
        size = len(files) * int(np.prod(shape)) / 2**20
        raise DataError(f"{folder}: the cache of {size:,.0f} MiB was not written ({error}): make room there") from error
    finally:
        part.unlink(missing_ok=True)
    return np.memmap(cache, np.uint8, "r", shape=(count, *shape))


def _decoded(files: list[Path], image_size: int, image_channel: int):
    """Yields the pictures as arrays, in order; a DataError if there is not one."""

    def decode(file: Path) -> np.ndarray | str:
        try:
            return fit_picture(open_picture(file), image_size, image_channel)
        except Exception as error:  # whatever a decoder makes of a broken or foreign file
            return f"skipped {file}: {' '.join(str(error).split()) or type(error).__name__}"

    skipped, pool = 0, ThreadPoolExecutor(min(8, os.cpu_count() or 1))  # eight large photographs fit in memory
    try:
        for row in tqdm(pool.map(decode, files), total=len(files), desc="decoding", unit="img", leave=False):
            if isinstance(row, str):
                skipped += 1
                tqdm.write(row, file=sys.stderr)
            else:
                yield row
    finally:
        pool.shutdown(cancel_futures=True)  # stopped half-way, nobody waits for the rest
    if skipped:
        print(f"{skipped} of {len(files)} files are no pictures and were skipped", file=sys.stderr)
    if skipped == len(files):
        raise DataError(f"none of the {len(files)} files, {files[0]} the first, is a picture")


def _fingerprint(files: list[Path], data_path: Path) -> str:
    """Changes with any file's name, size or time."""
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(os.fsencode(os.path.relpath(file, data_path)))
        digest.update(f"\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:16]
