"""How large a grid of pictures becomes, so that one that no file can hold is refused before it is drawn."""

from collections.abc import Sequence

from files.errors import ConfigError

MOST = {"gif": 65_535, "webp": 16_383, "png": 65_535}  # pixels a side, by their formats; PNG's: what programs open


def check_size(
    count: int, columns: int, size: Sequence[int], animation: str | None = None, gap: int = 2
) -> tuple[int, int]:
    """(height, width) of `utils.pictures.grid` of count > 1 pictures of this (height, width), `gap` pixels apart.

    ConfigError if it would be too large for its format: a PNG, or an `animation` ("gif" or "webp").
    """
    across, zoom, most = min(columns, count), max(1, 32 // max(size)), MOST[animation or "png"]
    height, width = -(-count // across) * (size[0] * zoom + gap) + gap, across * (size[1] * zoom + gap) + gap
    if max(height, width) > most:
        kind = f"a film as {animation}" if animation else "a picture"
        raise ConfigError(f"{kind} of {width:,}x{height:,} pixels is larger than {most:,}: take fewer pictures")
    return height, width
