"""Pictures of any size as one uint8 array. Picture files are decoded once, into a cache file.

The cache file is in a hidden subfolder of the data and holds the pixels without a header. Its name contains all that it
depends on, so that a change of the files, the size or the split leads to a new cache, and the number of pictures, so
that an incomplete file is detected:   .cache/train_64px_3ch_<fingerprint>_<pictures>.u8
If files were skipped, a second file, .rows, holds the numbers of the others as int64.
"""

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.errors import DataError, warn
from datasets.folder import open_picture
from datasets.pixels import Size, fit_picture, picture_shape
from files.atomic import Part, clear_parts, not_written, write_file

CACHE = re.compile(r"(.+)_([0-9a-f]{16})_([0-9]+)\.(?:u8|rows)")  # (split, size and channels), fingerprint, pictures
CROPPED, ENLARGED = 0.5, 1.5  # a median picture of which less is left, or that is enlarged more, deserves a line


def fit_array(pictures: np.ndarray, image_size: Size, image_channel: int) -> np.ndarray:
    """uint8 (N, H, W) or (N, H, W, 3) to pictures of `picture_shape`."""
    C, H, W = picture_shape(image_size, image_channel)
    if pictures.shape[1:3] == (H, W) and (1 if pictures.ndim == 3 else 3) == C:
        return np.ascontiguousarray(pictures.reshape(-1, H, W, C).transpose(0, 3, 1, 2))
    fitted = np.empty((len(pictures), C, H, W), np.uint8)
    for i, picture in enumerate(tqdm(pictures, desc="resizing", unit="img", leave=False)):
        fitted[i] = fit_picture(Image.fromarray(picture), image_size, image_channel)
    _warn_of_losses([pictures.shape[2:0:-1]] * len(pictures), H, W)
    return fitted


def fit_some(found: np.ndarray | list[Path], image_size: Size, image_channel: int) -> None:
    """Fits at most 100 of the found pictures, evenly spread, and stores nothing: only for the warnings."""
    some = found[:: -(-len(found) // 100)]
    if isinstance(some, np.ndarray):
        fit_array(some, image_size, image_channel)
    else:
        list(_decoded(some, image_size, image_channel, []))


def fit_files(
    files: list[Path], data_path: Path, split: str, image_size: Size, image_channel: int
) -> tuple[np.ndarray, np.ndarray]:
    """Picture files to pictures of `picture_shape`, uint8, memory-mapped from the cache; and their rows.

    rows: int64 (N,), the numbers of the files that the pictures are from.
    Files that are not pictures are skipped, with a message on stderr. If the folder is not writable, the array is in
    memory instead, also with a message. Several processes may do this at once: each writes its own file.
    Raises DataError if there is no picture, if a file cannot be read, and if the cache does not fit on the disk.
    """
    shape = _, H, W = picture_shape(image_size, image_channel)
    folder, size = data_path / ".cache", H if H == W else f"{H}x{W}"
    prefix = f"{split}_{size}px_{image_channel}ch"
    stem = f"{prefix}_{_fingerprint(files, data_path)}"
    cached = _open_cache(folder, stem, shape, len(files))
    if cached is not None:
        return cached
    rows = []
    pictures = _decoded(files, image_size, image_channel, rows)
    pictures = chain([next(pictures)], pictures)  # where there are no pictures, no cache folder is created
    try:
        try:
            folder.mkdir(exist_ok=True)
            clear_parts(folder)
            if taken := [place for place in folder.glob(f"{stem}_*") if place.is_dir()]:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(taken[0]))
            part = Part(folder / f"{stem}.u8")
        except OSError as error:
            warn(f"no cache ({error}): the pictures are kept in memory and decoded again next time")
            return _in_memory(pictures, len(files), shape), np.array(rows)
        with part:
            count = 0
            for picture in pictures:
                part.stream.write(picture.tobytes())
                count += 1
            cache = folder / f"{stem}_{count}.u8"
            if count < len(files):
                write_file(cache.with_suffix(".rows"), np.array(rows, "<i8").tobytes())
            part.complete(cache)
    except OSError as error:
        if cached := _open_cache(folder, stem, shape, len(files)):
            return cached  # another process was faster, and Windows replaces no file that is mapped
        error = not_written(folder / f"{stem}.u8", error, len(files) * int(np.prod(shape)))
        raise DataError(f"{error.filename} {error.strerror}") from error
    finally:
        with suppress(OSError):  # of a folder that is not empty
            folder.rmdir()
    for file in folder.iterdir():
        match = CACHE.fullmatch(file.name)
        if match and match[1] == prefix and f"{match[1]}_{match[2]}" != stem:
            with suppress(OSError):  # a folder, or mapped by another process of Windows
                file.unlink()  # of files that have changed since
    return np.memmap(cache, np.uint8, "r", shape=(count, *shape)), np.array(rows)


def _open_cache(
    folder: Path, stem: str, shape: tuple[int, int, int], files: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """The cached pictures (N, *shape), memory-mapped, and their rows; None if there is no complete cache file."""
    for cache in folder.glob(f"{stem}_*.u8"):
        match = CACHE.fullmatch(cache.name)
        if not match or cache.is_dir():
            continue
        count = int(match[3])
        rows = np.arange(count) if count == files else _saved_rows(cache.with_suffix(".rows"))
        whole = count and cache.stat().st_size == count * int(np.prod(shape))
        if whole and len(rows) == count and 0 <= rows[0] and rows[-1] < files:
            print(f"{count} pictures from the cache {cache}")
            return np.memmap(cache, np.uint8, "r", shape=(count, *shape)), rows
        warn(f"the cache {cache} is cut short, or of an earlier version: decoding the pictures again")
    return None


def _saved_rows(file: Path) -> np.ndarray:
    """int64 (N,), strictly ascending; empty if the file is missing, as beside the caches of earlier versions."""
    rows = np.frombuffer(file.read_bytes(), "<i8") if file.is_file() and file.stat().st_size % 8 == 0 else np.array([])
    return rows if (np.diff(rows) > 0).all() else np.array([])


def _in_memory(pictures: Iterator[np.ndarray], most: int, shape: tuple[int, int, int]) -> np.ndarray:
    """At most `most` pictures as one array (N, *shape)."""
    array, count = np.empty((most, *shape), np.uint8), 0
    for count, picture in enumerate(pictures, 1):
        array[count - 1] = picture
    return array[:count]


def _decoded(files: list[Path], image_size: Size, image_channel: int, rows: list[int]) -> Iterator[np.ndarray]:
    """Yields the pictures in order, uint8 (C, H, W). DataError if there are none.

    rows: gets the number of the file of each.
    """
    sizes = []

    def decode(file: Path) -> np.ndarray | str:
        try:
            picture = open_picture(file)
            sizes.append(picture.size)
            return fit_picture(picture, image_size, image_channel)
        except MemoryError as error:
            raise DataError(f"{file}: there is not enough memory to decode it") from error
        except Exception as error:  # Pillow raises many types for a damaged file
            # an error of the system, and not of the file's content, in which a decoder may seek beyond its start
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise DataError(f"{file} cannot be read: {error.strerror}") from error
            return f"skipped {file}: {' '.join(str(error).split()) or type(error).__name__}"

    skipped, pool = 0, ThreadPoolExecutor(min(8, os.cpu_count() or 1))  # eight large photographs fit in memory
    try:
        decoding = tqdm(pool.map(decode, files), total=len(files), desc="decoding", unit="img", leave=False)
        for row, decoded in enumerate(decoding):
            if isinstance(decoded, str):
                skipped += 1
                warn(decoded)
            else:
                rows.append(row)
                yield decoded
    finally:
        pool.shutdown(cancel_futures=True)  # an interruption does not wait for the remaining files
    if skipped:
        warn(f"{skipped} of {len(files)} files are not pictures and were skipped")
    if skipped == len(files):
        raise DataError(f"none of the {len(files)} files is a picture; the first is {files[0]}")
    _warn_of_losses(sizes, *picture_shape(image_size, image_channel)[1:])


def _warn_of_losses(sizes: list[tuple[int, int]], height: int, width: int) -> None:
    """Warns, in a line each, if most of the median picture is cropped away, and if it is enlarged much.

    sizes: (width, height) of each picture.
    """
    wide, high = np.array(sizes).T
    factors = np.maximum(width / wide, height / high)
    left, factor = np.median(width * height / (factors**2 * wide * high)), np.median(factors)
    if left < CROPPED:
        warn(f"the crop leaves {100 * left:.2g} % of the median picture: image_size=[height, width] may keep more")
    if factor >= ENLARGED:
        count = f"{(factors > 1).sum():,} of {len(factors):,} pictures are enlarged"
        warn(f"{count} {factor:.3g} times (the median): a smaller image_size loses nothing")


def _fingerprint(files: list[Path], data_path: Path) -> str:
    """16 hex digits that depend on the name, size and modification time of every file."""
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(os.fsencode(os.path.relpath(file, data_path)))
        digest.update(f"\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:16]
