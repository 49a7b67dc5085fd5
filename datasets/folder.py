"""A folder of pictures: its files, and how a picture file is opened."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import lru_cache
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from datasets.errors import DataError, warn
from datasets.registry import data_labels, data_set

FORMATS = (  # of pixels only: Pillow would hand an EPS file, which is a program, to Ghostscript
    "PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "TGA", "AVIF", "JPEG2000", "ICO", "ICNS", "PCX",
    "SGI", "QOI", "DDS", "PSD",
)  # fmt: skip
OTHERS = set(  # what lies beside pictures and is not opened
    ".txt .caption .json .jsonl .csv .tsv .xml .yaml .yml .md .html .pdf .log .db .ini .py .npy .npz .mat .pkl .pt "
    ".pth .ckpt .safetensors .parquet .zip .tar .gz .mp4 .mov .avi .mkv .webm .mp3 .wav".split()
)
SPLIT_OF = {"train": "train", "val": "train", "valid": "train", "validation": "train", "test": "test"}  # by subfolder
PAGED = ("TIFF", "GIF", "PNG", "WEBP", "AVIF")  # an MPO, as phones write, has a preview beside its photograph
RAISED = {"L;2": 85, "L;4": 17}  # Pillow multiplies grey levels of few bits, but not the one that is transparent

warnings.filterwarnings("ignore", module="PIL")  # what cannot be used is reported in our own lines


@dataclass(frozen=True)
class Reading:
    """How picture files are read, and where their pixels are kept: keys of a recipe.

    background: of transparency, a name or "#rrggbb". bits: of the values in 16-bit grey files.
    cache_dir: a folder for the cache; None: data_path, or the user's cache folder if data_path is read-only.
    """

    background: str = "white"
    bits: int = 16
    cache_dir: str | None = None

    @classmethod
    def of(cls, recipe: dict) -> "Reading":
        return cls(**{field.name: recipe[field.name] for field in fields(cls)})


AS_EVER = Reading()


@data_set("Folder")
def find_folder(data_path: Path, split: str, download: bool) -> list[Path]:
    """All files in data_path and its subfolders except hidden ones and those named like OTHERS, sorted by path.

    Symbolic links are followed. A folder or file that can be reached in several ways counts once.

    If data_path has subfolders for splits, "train" are those for training and validation, and "test" is the one for
    testing; "all" is everything. If it has none, "train" and "all" are the same. Raises DataError for split "test" if
    there is none, and if data_path is not a folder or contains no files.
    """
    if not data_path.is_dir():
        raise DataError(f"{data_path} is not a folder: set data_path to the folder with your pictures")
    splits = split_folders(data_path)
    if split == "test" and "test" not in splits.values():
        raise DataError(f"{data_path} is a plain folder, which has no test split: use split=train or split=all")
    roots = [data_path / name for name, of in splits.items() if of == split] or [data_path]
    files, others, visited = {}, [], {os.path.realpath(root) for root in (data_path, *roots)}

    def fail(error: OSError) -> NoReturn:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    for folder, subfolders, names in chain(*(os.walk(root, onerror=fail, followlinks=True) for root in roots)):
        seen, subfolders[:], real = sorted(subfolders), [], os.path.realpath(folder)
        for name in seen:
            target = os.path.realpath(os.path.join(folder, name))
            if not name.startswith(".") and target not in visited:  # a folder that is linked twice counts once
                visited.add(target)
                subfolders.append(name)
        for file in (Path(folder, name) for name in names if not name.startswith(".")):
            if file.suffix.lower() in OTHERS:
                others.append(file)
            elif not file.is_file():
                warn(f"skipped {file}: a broken link, or not a regular file")
            elif file.is_symlink():
                files.setdefault(os.path.realpath(file), file)
            else:
                files[os.path.join(real, file.name)] = file  # rather than links to it
    if others:
        warn(f"{data_path}: {len(others):,} files are not pictures and were not opened: {by_suffix(others)}")
    if not files:
        raise DataError(f"{data_path} contains no pictures: put your files there (subfolders are allowed)")
    return sorted(files.values())


def split_folders(data_path: Path) -> dict[str, str]:
    """The split of each subfolder that is named like one; {} if only one of several is, which then is a class."""
    names = [entry.name for entry in data_path.iterdir() if not entry.name.startswith(".") and entry.is_dir()]
    splits = {name: SPLIT_OF[name.lower()] for name in sorted(names) if name.lower() in SPLIT_OF}
    return splits if len(splits) > 1 or len(splits) == len(names) else {}


def by_suffix(files: Iterable[Path]) -> str:
    """How many files there are of each kind, as "300 .txt, 2 .jpg"."""
    counts = Counter(file.suffix.lower() or "without suffix" for file in files)
    return ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common())


@data_labels("Folder")
def folder_labels(data_path: Path, split: str, found: list[Path]) -> tuple[np.ndarray, list[str]]:
    """The subfolder of data_path, or of a split's folder, that a picture is in, at any depth.

    Pictures directly in data_path or in the split's folder have no class.
    """
    splits = split_folders(data_path)
    inside = [file.relative_to(data_path).parts for file in found]
    inside = [parts[1:] if parts[0] in splits else parts for parts in inside]
    folders = [parts[0] if len(parts) > 1 else None for parts in inside]
    classes = sorted({folder for folder in folders if folder is not None})
    if not classes:
        raise DataError(
            f"{data_path} has no subfolders, which would be the classes of its pictures: set num_classes=null"
        )
    number = {folder: i for i, folder in enumerate(classes)} | {None: -1}
    names = [os.fsencode(name).decode("utf-8", "replace") for name in classes]  # a name on disk may hold any bytes
    return np.array([number[folder] for folder in folders]), names


def open_picture(file: Path, reading: Reading = AS_EVER) -> Image.Image:
    """A picture file of any mode and of one of the FORMATS as 8-bit sRGB. Its info["pages"]: whether it has several.

    The picture is rotated as its EXIF data say, its colour profile is applied, and transparent parts get the
    background. Raises ValueError for pixels of unknown range (floats and 32-bit integers) and for too many pixels, and
    Pillow's errors for a file that is not a picture.
    """
    Image.init()  # fills Image.OPEN, which lacks formats that this Pillow was built without
    try:
        image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except Image.DecompressionBombError as error:
        most = 2 * Image.MAX_IMAGE_PIXELS / 1e6
        raise ValueError(f"it has more than {most:.0f} megapixels: save it smaller, or in parts") from error
    except UnidentifiedImageError as error:
        if file.suffix.lower() not in (".heic", ".heif"):
            raise
        raise ValueError("HEIC is not read: save it as JPEG or PNG") from error
    with image:
        has_16_bits = image.format in ("PNG", "PPM")  # Pillow may use its 32-bit mode "I" for 16-bit files of these
        pages = image.format in PAGED and getattr(image, "is_animated", False)
        clear, raw = image.info.get("transparency"), image.tile[0].args if image.format == "PNG" else None
        if raw in RAISED:
            image.info["transparency"] = clear * RAISED[raw]
        elif raw == "RGB;16B" and clear:
            image.info["transparency"] = tuple(value >> 8 for value in clear)  # as Pillow reads the pixels
        image = ImageOps.exif_transpose(image)
        if image.mode == "F" or (image.mode == "I" and not has_16_bits):
            raise ValueError("the range of its pixels (floats or 32-bit integers) is unknown")
        if image.mode.startswith("I"):  # 16 bits: scaled here, because Pillow's convert would clip at 255
            most = 2**reading.bits - 1
            pixels = np.asarray(image, np.int32)
            image = Image.fromarray(((pixels.clip(0, most) * 255 + most // 2) // most).astype(np.uint8))  # rounded
            if clear is not None:
                image.putalpha(Image.fromarray(np.where(pixels == clear, 0, 255).astype(np.uint8)))
        if image.has_transparency_data:
            image = image.convert("RGBA")
        elif image.mode not in ("L", "CMYK"):
            image = image.convert("RGB")
        if to_srgb := _to_srgb(image.info.get("icc_profile"), image.mode):
            image = ImageCms.applyTransform(image, to_srgb)
        if image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, reading.background), image)
        image = image.convert("RGB")
        image.info["pages"] = pages
        return image


@lru_cache(64)
def _to_srgb(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a colour profile to sRGB. None if there is nothing to do, or if the profile is broken or of another mode."""
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(profile):
            return None
        output = "RGBA" if mode == "RGBA" else "RGB"
        return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, output)
    except Exception:  # Pillow raises many types
        return None
