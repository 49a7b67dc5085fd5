"""How large a grid of pictures becomes, so that one that no file can hold is refused before it is drawn."""

from collections.abc import Sequence

from files.errors import ConfigError

MOST = {"gif": 65_535, "webp": 16_383, "png": 65_535}  # pixels a side, by their formats; PNG's: what programs open


def zoom_of(size: Sequence[int]) -> int:
    """How often a grid enlarges pictures of this (height, width)."""
    return max(1, 32 // max(size))


def grid_size(count: int, columns: int, size: Sequence[int]) -> tuple[int, int]:
    """(height, width) of the `grid` of count > 1 pictures of this (height, width)."""
    across, zoom = min(columns, count), zoom_of(size)
    return -(-count // across) * (size[0] * zoom + 2) + 2, across * (size[1] * zoom + 2) + 2


def check_size(count: int, columns: int, size: Sequence[int], animation: str | None) -> None:
    """ConfigError if a grid, as a PNG or as an `animation` ("gif" or "webp"), were too large for the format."""
    height, width = grid_size(count, columns, size)
    if max(height, width) > (most := MOST[animation or "png"]):
        kind = f"a film as {animation}" if animation else "a picture"
        raise ConfigError(
            f"{kind} of {width:,}x{height:,} pixels is too large, at most {most:,} a side: take fewer pictures"
        )
