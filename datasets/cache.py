"""Pictures of any size as one uint8 array. Picture files are decoded once, into a cache file.

The cache file is in a hidden subfolder of the data, or see `cache_folders`, and holds the pixels without a header. Its
name contains all that it depends on, so that a change of the files, the size or the split leads to a new cache, and the
number of pictures, so that an incomplete file is detected:   .cache/train_64px_3ch_<fingerprint>_<pictures>.u8
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

from datasets.check import facts_of, say_facts, warn_of_losses
from datasets.errors import DataError, warn
from datasets.folder import AS_EVER, Reading, by_suffix, open_picture
from datasets.pixels import Size, fit_picture, picture_shape
from files.atomic import Part, clear_parts, not_written, write_file

CACHE = re.compile(r"(.+)_([0-9a-f]{16})_([0-9]+)\.(?:u8|rows)")  # (split, size and channels), fingerprint, pictures
NAMED = 5  # skipped files; the others are only counted


def fit_array(pictures: np.ndarray, image_size: Size, image_channel: int) -> np.ndarray:
    """uint8 (N, H, W) or (N, H, W, 3) to pictures of `picture_shape`."""
    C, H, W = picture_shape(image_size, image_channel)
    if pictures.shape[1:3] == (H, W) and (1 if pictures.ndim == 3 else 3) == C:
        return np.ascontiguousarray(pictures.reshape(-1, H, W, C).transpose(0, 3, 1, 2))
    fitted = np.empty((len(pictures), C, H, W), np.uint8)
    for i, picture in enumerate(tqdm(pictures, desc="resizing", unit="img", leave=False)):
        fitted[i] = fit_picture(Image.fromarray(picture), image_size, image_channel)
    warn_of_losses(*np.full((2, len(pictures)), [[pictures.shape[2]], [pictures.shape[1]]]), H, W)
    return fitted


def fit_some(found: np.ndarray | list[Path], image_size: Size, image_channel: int, reading: Reading = AS_EVER) -> None:
    """Fits at most 100 of the found pictures, evenly spread, and stores nothing: only for the warnings."""
    some = found[:: -(-len(found) // 100)]
    if isinstance(some, np.ndarray):
        fit_array(some, image_size, image_channel)
    else:
        list(_decoded(some, image_size, image_channel, reading, []))


def fit_files(
    files: list[Path], data_path: Path, split: str, image_size: Size, image_channel: int, reading: Reading = AS_EVER
) -> tuple[np.ndarray, np.ndarray]:
    """Picture files to pictures of `picture_shape`, uint8, memory-mapped from the cache; and their rows.

    rows: int64 (N,), the numbers of the files that the pictures are from.
    Files that are not pictures are skipped, with a message on stderr. If no folder for the cache is writable, the array
    is in memory instead, also with a message. Several processes may do this at once: each writes its own file.
    Raises DataError if there is no picture, if a file cannot be read, and if the cache does not fit on the disk.
    """
    shape = _, H, W = picture_shape(image_size, image_channel)
    size = H if H == W else f"{H}x{W}"
    prefix = f"{split}_{size}px_{image_channel}ch" + f"_{reading.background}" * (reading.background != "white")
    prefix += f"_{reading.bits}bits" * (reading.bits != 16)
    stem = f"{prefix}_{_fingerprint(files, data_path)}"
    folders = cache_folders(data_path, reading)
    for folder in folders:
        if cached := _open_cache(folder, stem, shape, len(files)):
            return cached
    rows = []
    pictures = _decoded(files, image_size, image_channel, reading, rows)
    pictures = chain([next(pictures)], pictures)  # where there are no pictures, no cache folder is created
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            clear_parts(folder)
            if taken := [place for place in folder.glob(f"{stem}_*") if place.is_dir()]:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(taken[0]))
            part = Part(folder / f"{stem}.u8")
            break
        except OSError as error:
            warn(f"no cache in {folder} ({error.strerror})")
    else:
        warn("the pictures are kept in memory and decoded again next time: set cache_dir to a folder of yours")
        return np.fromiter(pictures, np.dtype((np.uint8, shape))), np.array(rows)
    most = len(files) * int(np.prod(shape))
    print(f"decoding {len(files):,} pictures into {folder}: up to {most / 2**20:,.1f} MiB")
    try:
        with part:
            for picture in pictures:
                part.stream.write(picture.tobytes())
            cache = folder / f"{stem}_{len(rows)}.u8"
            if len(rows) < len(files):
                write_file(cache.with_suffix(".rows"), np.array(rows, "<i8").tobytes())
            part.complete(cache)
    except OSError as error:
        if cached := _open_cache(folder, stem, shape, len(files)):
            return cached  # another process was faster, and Windows replaces no file that is mapped
        error = not_written(folder / f"{stem}.u8", error, most)
        raise DataError(f"{error.filename} {error.strerror}; cache_dir may be another folder") from error
    finally:
        with suppress(OSError):  # of a folder that is not empty
            folder.rmdir()
    for file in folder.iterdir():
        match = CACHE.fullmatch(file.name)
        if match and match[1] == prefix and f"{match[1]}_{match[2]}" != stem:
            with suppress(OSError):  # a folder, or mapped by another process of Windows
                file.unlink()  # of files that have changed since
    return np.memmap(cache, np.uint8, "r", shape=(len(rows), *shape)), np.array(rows)


def cache_folders(data_path: Path, reading: Reading) -> list[Path]:
    """Where the cache may be, the better place first; elsewhere each data_path has a folder of its own."""
    own = hashlib.sha256(os.fsencode(os.path.realpath(data_path))).hexdigest()[:16]
    if reading.cache_dir:
        return [Path(reading.cache_dir, own)]
    users = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return [data_path / ".cache", Path(users, "diffusion-pytorch", own)]


def _open_cache(folder: Path, stem: str, shape: tuple, files: int) -> tuple[np.ndarray, np.ndarray] | None:
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


def _decoded(
    files: list[Path], image_size: Size, image_channel: int, reading: Reading, rows: list[int]
) -> Iterator[np.ndarray]:
    """Yields the pictures in order, uint8 (C, H, W). DataError if there are none.

    rows: gets the number of the file of each.
    """
    facts, skipped = [], []

    def decode(file: Path) -> np.ndarray | str:
        try:
            picture = open_picture(file, reading)
            fitted = fit_picture(picture, image_size, image_channel)
            facts.append(facts_of(picture, fitted))
            return fitted
        except MemoryError as error:
            raise DataError(f"{file}: there is not enough memory to decode it") from error
        except Exception as error:  # Pillow raises many types for a damaged file
            # an error of the system, and not of the file's content, in which a decoder may seek beyond its start
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise DataError(f"{file} cannot be read: {error.strerror}") from error
            return f"skipped {file}: {' '.join(str(error).split()) or type(error).__name__}"

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))  # eight large photographs fit in memory
    try:
        decoding = tqdm(pool.map(decode, files), total=len(files), desc="decoding", unit="img", leave=False)
        for row, decoded in enumerate(decoding):
            if isinstance(decoded, str):
                skipped.append(files[row])
                if len(skipped) <= NAMED:
                    warn(decoded)
            else:
                rows.append(row)
                yield decoded
    finally:
        pool.shutdown(cancel_futures=True)  # an interruption does not wait for the remaining files
    if skipped:
        warn(f"{len(skipped)} of {len(files)} files are not pictures and were skipped: {by_suffix(skipped)}")
    if len(skipped) == len(files):
        raise DataError(f"none of the {len(files)} files is a picture; the first is {files[0]}")
    warn_of_losses(*say_facts(np.array(facts)), *picture_shape(image_size, image_channel)[1:])


def _fingerprint(files: list[Path], data_path: Path) -> str:
    """16 hex digits that depend on the name, size and modification time of every file."""
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(os.fsencode(os.path.relpath(file, data_path)))
        digest.update(f"\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:16]
