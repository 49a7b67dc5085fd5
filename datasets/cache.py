"""Pictures of any size as one uint8 array. Picture files are decoded once, into a cache file.

The cache file is in a hidden subfolder of the data, or see `cache_folders`. It holds the pixels of all pictures, and
then as int64 the number of the file of each, which tell where files were skipped. Its name contains all that it depends
on, so that a change of the files, the size or the split leads to a new one:   .cache/train_64px_3ch_<fingerprint>.u8
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
from datasets.registry import Found
from files.atomic import clear_parts, writing

CACHE = re.compile(r"(.+)_[0-9a-f]{16}(_[0-9]+)?\.(u8|rows)")  # (split, size and channels); the rest: earlier versions'
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


def fit_some(found: Found, image_size: Size, image_channel: int, reading: Reading = AS_EVER) -> None:
    """Fits at most 100 of the found pictures, evenly spread, and stores nothing: only for the warnings."""
    some = found[:: -(-len(found) // 100)]
    if isinstance(some, np.ndarray):
        fit_array(some, image_size, image_channel)
    else:
        list(_decoded(some, image_size, image_channel, reading, []))


def fit_images(
    found: Found, data_path: str | Path, split: str, image_size: Size, image_channel: int, reading: Reading = AS_EVER
) -> tuple[np.ndarray, np.ndarray]:
    """What `datasets.find_images` found as pictures of `picture_shape`, uint8; and which of them: int64 (N,).

    Those of files are memory-mapped from the cache, or in memory if no folder for it is writable. Files that are not
    pictures are skipped. Both with a message on stderr. Several processes may do this at once.
    Raises DataError if there is no picture, if a file cannot be read, and if the cache does not fit on the disk.
    """
    if isinstance(found, np.ndarray):
        return fit_array(found, image_size, image_channel), np.arange(len(found))
    files, data_path = found, Path(data_path)
    shape = _, H, W = picture_shape(image_size, image_channel)
    size = H if H == W else f"{H}x{W}"
    prefix = f"{split}_{size}px_{image_channel}ch" + f"_{reading.background}" * (reading.background != "white")
    prefix += f"_{reading.bits}bits" * (reading.bits != 16)
    name, folders = f"{prefix}_{_fingerprint(files, data_path)}.u8", cache_folders(data_path, reading)
    for folder in folders:
        if cached := _open_cache(folder / name, shape, len(files)):
            print(f"{len(cached[0])} pictures from the cache {folder / name}")
            return cached
    rows = []
    pictures = _decoded(files, image_size, image_channel, reading, rows)
    pictures = chain([next(pictures)], pictures)  # where there are no pictures, no cache folder is created
    folder = next(filter(_is_writable, folders), None)
    if folder is None:
        warn("the pictures are kept in memory and decoded again next time: set cache_dir to a folder of yours")
        return np.fromiter(pictures, np.dtype((np.uint8, shape))), np.array(rows)
    clear_parts(folder)
    most = len(files) * (int(np.prod(shape)) + 8)
    print(f"decoding {len(files):,} pictures into {folder}: up to {most / 2**20:,.1f} MiB")
    try:
        with writing(folder / name, most) as stream:
            for picture in pictures:
                stream.write(picture.tobytes())
            stream.write(np.array(rows, "<i8").tobytes())
    except OSError as error:
        if not _open_cache(folder / name, shape, len(files)):  # else another was faster, and holds it on Windows
            raise DataError(f"{error.filename} {error.strerror}; cache_dir may be another folder") from error
    for file in folder.iterdir():
        if (match := CACHE.fullmatch(file.name)) and match[1] == prefix and file.name != name:
            with suppress(OSError):  # a folder, or mapped by another process of Windows
                file.unlink()  # of files that have changed since
    return _open_cache(folder / name, shape, len(files))


def cache_folders(data_path: Path, reading: Reading) -> list[Path]:
    """Where the cache may be, the better place first; elsewhere each data_path has a folder of its own."""
    own = hashlib.sha256(os.fsencode(os.path.realpath(data_path))).hexdigest()[:16]
    if reading.cache_dir:
        return [Path(reading.cache_dir, own)]
    users = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return [data_path / ".cache", Path(users, "diffusion-pytorch", own)]


def _is_writable(folder: Path) -> bool:
    """Creates a folder for the cache. Where it cannot be used, a line says so."""
    with suppress(OSError):  # also of a file of this name
        folder.mkdir(parents=True, exist_ok=True)
    if folder.is_dir() and os.access(folder, os.W_OK):
        return True
    warn(f"no cache in {folder}, where nothing can be written")
    return False


def _open_cache(cache: Path, shape: tuple, files: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The cached pictures (N, *shape), memory-mapped, and their rows; None if there is no complete cache file."""
    if not cache.is_file():
        return None
    pixels = int(np.prod(shape))
    count, rest = divmod(cache.stat().st_size, pixels + 8)
    rows = np.fromfile(cache, "<i8", offset=count * pixels)
    if rest or not count or (np.diff(rows) <= 0).any() or rows[0] < 0 or rows[-1] >= files:
        warn(f"the cache {cache} is cut short: decoding the pictures again")
        return None
    return np.memmap(cache, np.uint8, "r", shape=(count, *shape)), rows


def _decoded(
    files: list[Path], image_size: Size, image_channel: int, reading: Reading, rows: list[int]
) -> Iterator[np.ndarray]:
    """Yields the pictures in order, uint8 (C, H, W). rows: gets the number of each one's file. DataError if none is."""
    facts, skipped = [], []

    def decode(file: Path) -> np.ndarray | str:
        try:
            picture = open_picture(file, reading)
            fitted = fit_picture(picture, image_size, image_channel)
            facts.append(facts_of(picture, fitted))
            return fitted
        except Exception as error:  # Pillow raises many types for a damaged file
            # an error of the system, and not of the file's content, in which a decoder may seek beyond its start
            if isinstance(error, MemoryError) or getattr(error, "errno", None) not in (None, errno.EINVAL):
                reason = getattr(error, "strerror", "there is not enough memory")
                raise DataError(f"{file} cannot be read: {reason}") from error
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
