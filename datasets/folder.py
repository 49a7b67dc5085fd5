"""A folder of pictures: its files, and how a picture file is opened."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from PIL import Image, ImageCms, ImageOps

from datasets.errors import DataError, warn
from datasets.registry import data_labels, data_set

FORMATS = (  # of pixels only: Pillow would hand an EPS file, which is a program, to Ghostscript
    "PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "TGA", "AVIF", "JPEG2000", "ICO", "ICNS", "PCX",
    "SGI", "QOI", "DDS", "PSD",
)  # fmt: skip
OTHERS = set(  # suffixes of what may lie beside pictures and is not opened
    ".txt .caption .json .jsonl .csv .tsv .xml .yaml .yml .md .html .pdf .log .db .ini .py .npy .npz .mat .pkl .pt .pth"
    " .ckpt .safetensors .u8 .rows .parquet .zip .tar .gz .mp4 .mov .avi .mkv .webm .mp3 .wav .heic .heif".split()
)
SPLIT_OF = {"train": "train", "val": "train", "valid": "train", "validation": "train", "test": "test"}  # a subfolder's
RAISED = {"L;2": 85, "L;4": 17}  # Pillow multiplies grey levels of few bits, but not the one that is transparent
warn_once = cache(warn)  # a folder is searched several times
warnings.filterwarnings("ignore", module="PIL")  # a line of our own says what cannot be used


class Reading(NamedTuple):
    """How picture files are read: keys of a recipe, see config.yaml."""

    background: str = "white"  # a name or #rrggbb
    bits: int = 16
    cache_dir: str | None = None

    @classmethod
    def of(cls, recipe: dict) -> "Reading":
        return cls(**{key: recipe[key] for key in cls._fields if key in recipe})


AS_EVER = Reading()


@data_set("Folder")
def find_folder(data_path: Path, split: str, download: bool) -> list[Path]:
    """All files in data_path and its subfolders except hidden ones and OTHERS, sorted by path.

    Links are followed; a folder or file that can be reached in several ways counts once.
    Where data_path has folders for splits, "train" are those for training and validation; else it is all but those for
    tests. Raises DataError for a split that is not there, and if data_path is not a folder.
    """
    if not data_path.is_dir():
        raise DataError(f"{data_path} is not a folder: set data_path to the folder with your pictures")
    splits = split_folders(data_path)
    if split == "test" and "test" not in splits.values():
        raise DataError(f"{data_path} is a plain folder, which has no test split: use split=train or split=all")
    roots = [data_path / name for name, of in splits.items() if of == split] or [data_path]
    tests = [data_path / name for name, of in splits.items() if of == "test" and split == "train"]
    files, others, visited = {}, [], {os.path.realpath(root) for root in (data_path, *roots, *tests)}
    if split == "train" and roots != [data_path] and (beside := _beside(data_path, splits)):
        warn_once(f"{data_path} has folders for splits; what is beside them is not used: {', '.join(beside)}")

    def fail(error: OSError) -> NoReturn:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    for folder, subfolders, names in chain(*(os.walk(root, onerror=fail, followlinks=True) for root in roots)):
        real, shown = os.path.realpath(folder), sorted(name for name in subfolders if not name.startswith("."))
        places = {os.path.realpath(os.path.join(folder, name)): name for name in reversed(shown)}
        subfolders[:] = sorted(places[place] for place in places.keys() - visited)  # each counts once
        visited.update(places)
        for file in (Path(folder, name) for name in names if not name.startswith(".")):
            if file.suffix.lower() in OTHERS:
                others.append(file)
            elif not file.is_file():
                warn_once(f"skipped {file}: a broken link, or not a regular file")
            elif file.is_symlink():
                files.setdefault(os.path.realpath(file), file)
            else:
                files[os.path.join(real, file.name)] = file  # rather than links to it
    if others:
        heic = " (save HEIC as JPEG or PNG)" * any(file.suffix.lower() in (".heic", ".heif") for file in others)
        warn_once(f"{data_path}: {len(others):,} files were not opened: {by_suffix(others)}{heic}")
    return sorted(files.values())


def split_folders(data_path: Path) -> dict[str, str]:
    """The split of each subfolder that is named like one; {} if only one of several is, which then is a class."""
    shown = (entry for entry in data_path.iterdir() if not entry.name.startswith(".") and entry.is_dir())
    names = [entry.name for entry in shown if not is_cache(entry)]
    splits = {name: SPLIT_OF[name.lower()] for name in sorted(names) if name.lower() in SPLIT_OF}
    return splits if len(splits) > 1 or len(splits) == len(names) else {}


def _beside(data_path: Path, splits: dict[str, str]) -> list[str]:
    """Up to three names of what may be pictures or folders of pictures, but not of splits, and then an ellipsis."""
    found = [entry for entry in data_path.iterdir() if entry.suffix.lower() not in OTHERS and not is_cache(entry)]
    names = sorted(entry.name for entry in found if entry.name not in splits and not entry.name.startswith("."))
    return names if len(names) < 4 else [*names[:3], "…"]


def is_cache(folder: Path) -> bool:
    """Whether it is a cache_dir, see `cache_folders`: all that its subfolders hold are caches."""
    suffixes = (file.suffix for file in folder.glob("*/*"))
    return next(suffixes, None) == ".u8" and all(suffix == ".u8" for suffix in suffixes)


def by_suffix(files: Iterable[Path]) -> str:
    """How many files there are of each kind, as "300 .txt, 2 .jpg"."""
    counts = Counter(file.suffix.lower() or "without suffix" for file in files)
    return ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common())


@data_labels("Folder")
def folder_labels(data_path: Path, split: str, found: list[Path]) -> tuple[np.ndarray, list[str]]:
    """The subfolder of data_path, or of a split's, that a picture is in, at any depth; others have no class.

    Only a subfolder with a picture that can be opened is a class.
    """
    inside, splits = [file.relative_to(data_path).parts for file in found], split_folders(data_path)
    inside = [parts[1:] if parts[0] in splits else parts for parts in inside]
    folders, of = [parts[0] if len(parts) > 1 else None for parts in inside], {}
    for folder, file in zip(folders, found, strict=True):
        of.setdefault(folder, []).append(file)
    classes = sorted(folder for folder in of if folder is not None and any(map(_is_picture, of[folder])))
    if not classes:
        raise DataError(f"{data_path} has no subfolders, which would be the classes: set num_classes=null")
    number = {folder: i for i, folder in enumerate(classes)}
    names = [os.fsencode(name).decode("utf-8", "replace") for name in classes]  # a name on disk may hold any bytes
    return np.array([number.get(folder, -1) for folder in folders]), names


def _is_picture(file: Path) -> bool:
    with suppress(Exception):  # Pillow raises many types; what can be done about it is said where they are decoded
        return bool(open_picture(file))
    return False


def open_picture(file: Path, reading: Reading = AS_EVER) -> Image.Image:
    """A picture file of any mode and of one of the FORMATS as 8-bit RGB. Its info["pages"]: whether it has several.

    It is rotated as its EXIF data say, a colour profile is converted to sRGB, and transparent parts get the background.
    Raises ValueError for too many pixels, or of unknown range (floats and 32-bit integers), and Pillow's errors for a
    file that is not a picture.
    """
    Image.init()  # fills Image.OPEN, which lacks formats that this Pillow was built without
    try:
        image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise ValueError(f"{str(error).partition(',')[0]}: save it smaller, or in parts") from error
    with image:
        has_16_bits = image.format in ("PNG", "PPM")  # Pillow may use its 32-bit mode "I" for 16-bit files of these
        pages = image.format != "MPO" and getattr(image, "is_animated", False)  # phones write an MPO with a preview
        clear = image.info.get("transparency")
        raw = image.tile[0].args if image.format == "PNG" and clear else None
        if raw == "RGB;16B":
            image.info["transparency"] = tuple(value >> 8 for value in clear)  # as Pillow reads the pixels
        elif raw in RAISED:
            image.info["transparency"] = clear * RAISED[raw]
        image = ImageOps.exif_transpose(image)
        if image.mode == "F" or (image.mode == "I" and not has_16_bits):
            raise ValueError("the range of its pixels (floats or 32-bit integers) is unknown")
        if image.mode.startswith("I"):  # 16 bits: scaled here, because Pillow's convert would clip at 255
            pixels, most = np.asarray(image, np.int32), 2**reading.bits - 1
            image = Image.fromarray(((pixels.clip(0, most) * 255 + most // 2) // most).astype(np.uint8))  # rounded
            if clear is not None:
                image.putalpha(Image.fromarray(pixels != clear).convert("L"))
        if image.has_transparency_data:
            image = image.convert("RGBA")
        elif image.mode not in ("L", "CMYK"):
            image = image.convert("RGB")
        profile = image.info.get("icc_profile")
        if profile and b"sRGB" not in profile.replace(b"\0", b""):  # its text may be in UTF-16
            srgb, mode = ImageCms.createProfile("sRGB"), "RGBA" if image.mode == "RGBA" else "RGB"
            with suppress(ImageCms.PyCMSError):  # it is broken, or not for this mode
                image = ImageCms.profileToProfile(image, BytesIO(profile), srgb, outputMode=mode)
        if image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, reading.background), image)
        image = image.convert("RGB")
        image.info["pages"] = pages
        return image
