"""Any folder of pictures."""

import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from datasets.errors import DataError
from datasets.registry import data_set


@data_set("Folder")
def find_folder(data_path: Path, split: str, download: bool) -> list[Path]:
    """Every file below data_path, sorted; hidden ones aside. A folder has no test split: all of it is trained on."""
    if split == "test":
        raise DataError(f"{data_path} is a plain folder, which has no test split: use split=train or split=all")
    if not data_path.is_dir():
        raise DataError(f"{data_path} is not a folder: set data_path to the folder with your pictures")
    files, walked = [], set()
    for folder, subfolders, names in os.walk(data_path, followlinks=True):
        walked.add(os.path.realpath(folder))  # a link back up is not followed again
        subfolders[:] = (
            name
            for name in subfolders
            if not name.startswith(".") and os.path.realpath(os.path.join(folder, name)) not in walked
        )
        for file in (Path(folder, name) for name in names if not name.startswith(".")):
            if file.is_file():
                files.append(file)
            else:
                print(f"skipped {file}: a broken link or no file", file=sys.stderr)
    if not files:
        raise DataError(f"{data_path} has no files in it: put your pictures there, in any subfolders")
    return sorted(files)


def open_picture(file: Path) -> Image.Image:
    """A picture file in any mode as it is meant to look: upright, opaque (on white), 8 bits a channel, RGB or grey."""
    with Image.open(file) as image:
        known_as_16_bits = image.format in ("PNG", "PPM")
        image = ImageOps.exif_transpose(image)
        if image.mode == "F" or (image.mode == "I" and not known_as_16_bits):
            raise ValueError("its pixels are floats or 32-bit integers, whose range is not known")
        if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion would clip at 255
            return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        return image.convert("RGB")
