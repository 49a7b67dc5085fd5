"""Pictures for people: grids, tables of grids, films and plots."""

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from datasets import to_uint8
from files.atomic import write_file
from files.errors import ConfigError

MOST = {"gif": 65_535, "webp": 16_383, "png": 65_535}  # pixels a side, by their formats; PNG's: what programs open
MOST_ROWS = 16  # in a picture of many classes, each of which has only one sample
PNG_END = b"IEND\xae\x42\x60\x82"
TABLE_GAP = 8  # pixels between the pictures of a table
FONTS = ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "msyh.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc")
Cells = Sequence[Sequence[Image.Image | None]]  # of a table, row by row


def grid_columns(count: int) -> int:
    """The columns of a grid that is as square as possible: 10 for 100 pictures."""
    return math.ceil(math.sqrt(count))


def grid(x: Tensor, columns: int) -> Image.Image:
    """Pictures (N, C, H, W), floats in [-1, 1] or uint8, row by row, two pixels apart.

    Pictures of up to 16 pixels are enlarged by a whole factor, to 32 pixels or nearly so.
    """
    pixels = x.cpu() if x.dtype == torch.uint8 else to_uint8(x.cpu())
    zoom = max(1, 32 // max(pixels.shape[2:]))
    pixels = pixels.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3).permute(0, 2, 3, 1)
    pictures = [Image.fromarray(picture.squeeze(2).numpy()) for picture in pixels]
    if len(pictures) == 1:
        return pictures[0].convert("RGB")
    columns, (width, height) = min(columns, len(pictures)), (2 + side for side in pictures[0].size)
    sheet = Image.new("RGB", sheet_size(len(pictures), columns, x.shape[2:])[::-1])
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (2 + i % columns * width, 2 + i // columns * height))
    return sheet


def sheet_size(count: int, columns: int, size: Sequence[int], gap: int = 2) -> tuple[int, int]:
    """(height, width) of a `grid` of count > 1 pictures of this (height, width), `gap` pixels apart."""
    across, zoom = min(columns, count), max(1, 32 // max(size))
    return -(-count // across) * (size[0] * zoom + gap) + gap, across * (size[1] * zoom + gap) + gap


def check_size(count: int, columns: int, size: Sequence[int], animation: str | None = None, gap: int = 2) -> None:
    """ConfigError if a `sheet_size` is too large for its format: a PNG, or an `animation` ("gif" or "webp")."""
    (height, width), most = sheet_size(count, columns, size, gap), MOST[animation or "png"]
    if max(height, width) > most:
        kind = f"a film as {animation}" if animation else "a picture"
        raise ConfigError(f"{kind} of {width:,}x{height:,} pixels is larger than {most:,}: take fewer pictures")


def save_grid(x: Tensor, file: Path, columns: int) -> Path:
    """Writes a grid as a PNG."""
    return write_file(file, png(grid(x, columns)))


def in_rows(count: int, classes: int) -> bool:
    """Whether `save_by_class` draws so many samples of so many classes with a row for each class."""
    return count >= 2 * classes or count <= MOST_ROWS


def save_by_class(x: Tensor, names: Sequence[str], file: Path, labels: Sequence[int]) -> Path:
    """Writes samples, of which number i is of the class names[labels[i]]: a row a class, with its name beside.

    Of many classes with only one sample each it is a square instead, with the names below. names: []: as `save_grid`.
    """
    if not names:
        return save_grid(x, file, grid_columns(len(x)))
    labels = torch.tensor(labels)
    if in_rows(len(x), len(labels.unique())):
        rows, columns = labels.unique().tolist(), labels.bincount().max().item()
        return save_table([[grid(x[labels == row], columns)] for row in rows], [names[row] for row in rows], [""], file)
    side, pictures = grid_columns(len(x)), [grid(picture[None], 1) for picture in x]
    letters = pictures[0].width // (14 if far(names) else 7)  # 7 pixels a European letter
    below = [names[label][:letters] for label in labels]
    rows = [slice(start, start + side) for start in range(0, len(x), side)]
    cells, notes = [pictures[row] for row in rows], [below[row] for row in rows]
    return save_table(cells, [""] * len(rows), [""] * side, file, notes)


def png(image: Image.Image) -> bytes:
    """The content of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def is_complete_png(file: Path) -> bool:
    """Whether a file exists and ends as a PNG does: one that was cut short does not."""
    return file.is_file() and file.read_bytes().endswith(PNG_END)


def far(texts: Iterable[str]) -> bool:
    """Whether there are letters that Pillow's own font lacks: it has those of European languages."""
    return max("".join(texts), default="") > "\u024f"


def font_of(texts: Iterable[str]) -> ImageFont.ImageFont:
    """Pillow's own font, or, for texts that it lacks letters of, one of the system's that has Chinese, if any."""
    if far(texts):
        for name in FONTS:
            with suppress(OSError):
                return ImageFont.truetype(name, 14)
    return ImageFont.load_default(14)


def save_table(
    cells: Cells, rows: Sequence[str], columns: Sequence[str], file: Path, notes: Sequence[Sequence[str]] | None = None
) -> Path:
    """Writes pictures of one height as a table, with row labels on the left, column labels above and notes below cells.

    A cell that is None stays empty. Columns are as wide as their labels and notes.
    """
    ink, gap, line = "black", TABLE_GAP, 18  # pixels: gap, line height
    font = font_of([*rows, *columns, *chain.from_iterable(notes or [])])
    inner, height = max(cell.size for row in cells for cell in row if cell)
    width = max([inner, *(math.ceil(font.getlength(text)) for text in chain(columns, *(notes or [])))])
    left = math.ceil(max((font.getlength(label) for label in rows), default=0)) + 2 * gap
    row_height, head = height + gap + (line if notes else 0), line * any(columns) + gap
    table = Image.new("RGB", (left + len(columns) * (width + gap), head + len(rows) * row_height), "white")
    draw = ImageDraw.Draw(table)
    for c, label in enumerate(columns):
        draw.text((left + c * (width + gap) + width / 2, gap / 2), label, ink, font, anchor="ma")
    for r, label in enumerate(rows):
        top = head + r * row_height
        draw.text((left - gap, top + height / 2), label, ink, font, anchor="rm")
        for c, cell in enumerate(cells[r]):
            if cell:
                table.paste(cell, (left + c * (width + gap) + (width - inner) // 2, top))
                if notes:
                    draw.text((left + c * (width + gap) + width / 2, top + height), notes[r][c], ink, font, anchor="ma")
    red, green, blue = table.split()
    if red.tobytes() == green.tobytes() == blue.tobytes():
        table = red  # a grey file is half the size
    return write_file(file, png(table))


def save_film(frames: Iterable[Image.Image], picture: Path, animation: str | None) -> list[Path]:
    """A film beside a picture, if asked for: a gif or a lossless webp that loops and pauses on its last frame."""
    if not animation:
        return []
    (first, *others), buffer = frames, io.BytesIO()
    durations = [100] * len(others) + [2000]  # milliseconds
    first.save(buffer, animation, save_all=True, append_images=others, duration=durations, loop=0, lossless=True)
    return [write_file(picture.with_suffix(f".{animation}"), buffer.getvalue())]


@contextmanager
def plotted(file: Path, **settings) -> Iterator["matplotlib.axes.Axes"]:  # noqa: F821 - imported where it is drawn
    """Axes to plot on, which are written as a PNG with a legend. settings: of the axes, such as their labels."""
    from matplotlib.figure import Figure  # imported here because it takes a second

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    yield axes
    axes.set(**settings)
    axes.legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    write_file(file, buffer.getvalue())
