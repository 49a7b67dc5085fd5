"""A folder of pictures: its files, and how a picture file is opened."""

import os
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image, ImageOps

from datasets.errors import DataError, warn
from datasets.registry import data_labels, data_set

FORMATS = (  # of pixels only: Pillow would hand an EPS file, which is a program, to Ghostscript
    "PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "TGA", "AVIF", "JPEG2000", "ICO", "ICNS", "PCX",
    "SGI", "QOI", "DDS", "PSD",
)  # fmt: skip


@data_set("Folder")
def find_folder(data_path: Path, split: str, download: bool) -> list[Path]:
    """All files in data_path and its subfolders except hidden ones, sorted by path.

    Symbolic links are followed. A folder that can be reached in several ways counts once.

    "train" and "all" are the same; a folder has no test split. Raises DataError for split "test", and if data_path is
    not a folder or contains no files.
    """
    if split == "test":
        raise DataError(f"{data_path} is a plain folder, which has no test split: use split=train or split=all")
    if not data_path.is_dir():
        raise DataError(f"{data_path} is not a folder: set data_path to the folder with your pictures")
    files, visited = [], {os.path.realpath(data_path)}

    def fail(error: OSError) -> NoReturn:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    for folder, subfolders, names in os.walk(data_path, onerror=fail, followlinks=True):
        seen, subfolders[:] = sorted(subfolders), []
        for name in seen:
            target = os.path.realpath(os.path.join(folder, name))
            if not name.startswith(".") and target not in visited:  # a folder that is linked twice counts once
                visited.add(target)
                subfolders.append(name)
        for file in (Path(folder, name) for name in names if not name.startswith(".")):
            if file.is_file():
                files.append(file)
            else:
                warn(f"skipped {file}: a broken link, or not a regular file")
    if not files:
        raise DataError(f"{data_path} contains no files: put your pictures there (subfolders are allowed)")
    return sorted(files)


@data_labels("Folder")
def folder_labels(data_path: Path, split: str, found: list[Path]) -> tuple[np.ndarray, list[str]]:
    """The subfolder of data_path that a picture is in, at any depth; pictures directly in data_path have no class.

    Only a subfolder with a picture that can be opened is a class.
    """
    inside = [file.relative_to(data_path).parts for file in found]
    folders, of = [parts[0] if len(parts) > 1 else None for parts in inside], {}
    for folder, file in zip(folders, found, strict=True):
        of.setdefault(folder, []).append(file)
    classes = sorted(folder for folder in of if folder is not None and any(map(_is_picture, of[folder])))
    if not classes:
        raise DataError(
            f"{data_path} has no subfolders, which would be the classes of its pictures: set num_classes=null"
        )
    number = {folder: i for i, folder in enumerate(classes)}
    names = [os.fsencode(name).decode("utf-8", "replace") for name in classes]  # a name on disk may hold any bytes
    if len(set(names)) < len(names):
        names = [os.fsencode(name).decode("utf-8", "backslashreplace") for name in classes]
    return np.array([number.get(folder, -1) for folder in folders]), names


def _is_picture(file: Path) -> bool:
    try:
        return bool(open_picture(file))
    except Exception:  # Pillow raises many types; what can be done about it is said where the pictures are decoded
        return False


def open_picture(file: Path) -> Image.Image:
    """A picture file of any mode and of one of the FORMATS as 8-bit RGB; a 16-bit grey picture as 8-bit grey.

    The picture is rotated as its EXIF data say, and transparent parts become white. Raises ValueError for pixels of
    unknown range (floats and 32-bit integers), and Pillow's errors for a file that is not a picture.
    """
    Image.init()  # fills Image.OPEN, which lacks formats that this Pillow was built without
    with Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
        has_16_bits = image.format in ("PNG", "PPM")  # Pillow may use its 32-bit mode "I" for 16-bit files of these
        image = ImageOps.exif_transpose(image)
        if image.mode == "F" or (image.mode == "I" and not has_16_bits):
            raise ValueError("the range of its pixels (floats or 32-bit integers) is unknown")
        if image.mode.startswith("I"):  # 16 bits: scaled here, because Pillow's convert would clip at 255
            pixels = np.asarray(image, np.int32).clip(0, 65535)
            return Image.fromarray(((pixels + 128) // 257).astype(np.uint8))  # rounded
        if image.has_transparency_data:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        return image.convert("RGB")
