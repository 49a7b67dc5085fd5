"""Oxford Flowers 102: 8,189 JPEGs."""

import sys
from pathlib import Path

from torchvision.datasets import Flowers102

from datasets.errors import DataError, fetch
from datasets.registry import data_set


@data_set("Flower102")
def find_flower102(data_path: Path, split: str, download: bool) -> list[Path]:
    """Every JPEG below data_path, sorted. With the authors' setid.mat also their splits: 2,040 pictures to train
    (their validation split counted in) and 6,149 to test."""

    def find() -> list[Path]:
        return sorted(file for file in data_path.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))

    files = find()
    if not files:
        wanted = "its JPEGs (image_00001.jpg … image_08189.jpg), in any subfolder,"
        fetch("Flower102", data_path, wanted, download, lambda: Flowers102(data_path, download=True))
        files = find()
    if len(files) != 8189:
        print(f"Flower102: {len(files):,} of its 8,189 pictures are in {data_path}", file=sys.stderr)
    if split == "all":
        return files
    table = next(iter(sorted(data_path.rglob("setid.mat"))), None)
    if table is None:
        raise DataError(f"Flower102: {data_path} has no setid.mat, which tells train from test; use split=all")
    from scipy.io import loadmat  # scikit-learn brings SciPy along

    try:
        content = loadmat(table)
        ids = [content[key].flatten() for key in {"train": ("trnid", "valid"), "test": ("tstid",)}[split]]
    except Exception as error:  # SciPy raises many kinds for a foreign file
        raise DataError(f"{table} is not the authors' table of splits ({error})") from error
    names = {f"image_{int(i):05d}.jpg" for part in ids for i in part}
    files = [file for file in files if file.name in names]
    if not files:
        raise DataError(f"Flower102: no picture of the {split} split, such as {min(names)}, is in {data_path}")
    return files
