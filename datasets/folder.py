"""Any folder of pictures."""

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from datasets.errors import DataError


def find_folder(data_path: Path, split: str, download: bool) -> list[Path]:
    """Every file below data_path, sorted; hidden ones aside. A folder has no test split: all of it is trained on."""
    if split == "test":
        raise DataError(f"{data_path} is a plain folder, which has no test split: use split=train or split=all")
    if not data_path.is_dir():
        raise DataError(f"{data_path} is not a folder: set data_path to the folder with your pictures")
    files = []
    for folder, subfolders, names in os.walk(data_path):
        subfolders[:] = (name for name in subfolders if not name.startswith("."))
        files += (Path(folder, name) for name in names if not name.startswith("."))
    if not files:
        raise DataError(f"{data_path} has no files in it: put your pictures there, in any subfolders")
    return sorted(files)


def open_picture(file: Path) -> Image.Image:
    """A picture file in any mode as it is meant to look: upright, opaque (on white), 8 bits a channel, RGB or grey."""
    with Image.open(file) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise ValueError("its pixels are floats, whose range is not known")
        if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion would clip at 255
            return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        return image.convert("RGB")
