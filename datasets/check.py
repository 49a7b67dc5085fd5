"""A look at pictures when they are decoded: a line says that they hold next to nothing, or what most of them lose."""

import numpy as np
from PIL import Image

from datasets.errors import warn

CROPPED, ENLARGED = 0.5, 1.5  # a median picture of which less is left, or that is enlarged more, deserves a line
LEVELS, FLAT = 100, 0.05  # so do fewer of the 256 levels in all pictures, and a larger share of pictures of one colour


def facts_of(image: Image.Image, pixels: np.ndarray) -> np.ndarray:
    """What `say_facts` counts, float64 (9,). image: as `open_picture` returns it. pixels: of it, uint8 (C, H, W)."""
    low, high = pixels.min((1, 2)), pixels.max((1, 2))
    flat, grey = (high - low).max() <= 2, len(pixels) == 3 and (pixels == pixels[:1]).all()
    content = hash(pixels.tobytes()) >> 12  # float64 has 52 bits
    return np.array([*image.size, image.info["pages"], low.min(), high.max(), pixels.mean(), flat, grey, content])


def say_facts(facts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Prints the range and mean of pictures, and what is odd. facts: (N, 9), by `facts_of`. Returns widths, heights."""
    wide, high, pages, low, top, mean, flat, grey, content = facts.T
    odd = {
        f"{flat.mean():.0%} are of one colour: if white on transparency, set background=black": flat.mean() > FLAT,
        "few levels: if 12 bits in 16-bit files, set bits=12": top.max() - low.min() < LEVELS and flat.mean() <= FLAT,
        f"{pages.sum():,.0f} files have several pages, of which only the first is read": pages.any(),
        f"{len(content) - len(set(content)):,} are copies of others": len(content) > len(set(content)),
        "all are grey, and image_channel=1 is enough": grey.all(),
    }
    lines = [f"{len(facts):,} pictures: values from {low.min():.0f} to {top.max():.0f} of 255, mean {mean.mean():.3g}"]
    lines += [text for text, is_so in odd.items() if is_so]
    (warn if len(lines) > 1 else print)("; ".join(lines))
    return wide, high


def warn_of_losses(wide: np.ndarray, high: np.ndarray, height: int, width: int) -> None:
    """Warns, in a line each, if most of the median picture is cropped away, and if it is enlarged much."""
    factors = np.maximum(width / wide, height / high)
    left, factor = np.median(width * height / (factors**2 * wide * high)), np.median(factors)
    if left < CROPPED:
        warn(f"the crop leaves {100 * left:.2g} % of the median picture: image_size=[height, width] may keep more")
    if factor >= ENLARGED:
        count = f"{(factors > 1).sum():,} of {len(factors):,} pictures are enlarged"
        warn(f"{count} {factor:.3g} times (the median): a smaller image_size loses nothing")
