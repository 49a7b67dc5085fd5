"""From uint8 pixels to the values in [-1, 1] that a network sees, and back; and pictures cut to size."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

Size = int | Sequence[int]  # pixels a side, or (height, width)


def normalize(images: Tensor) -> Tensor:
    """uint8 pixels of any shape to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Floats of any shape to uint8 pixels, rounded: -1 becomes 0, 1 becomes 255, values beyond are clamped.

    Raises FloatingPointError for values that are not finite, which no pixel stands for.
    """
    if not x.isfinite().all():
        raise FloatingPointError("the pictures have values that are not finite: the network's weights are unusable")
    return ((x.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)


def picture_shape(image_size: Size, image_channel: int) -> tuple[int, int, int]:
    """(C, H, W) of the pictures."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return image_channel, height, width


def fit_picture(image: Image.Image, image_size: Size, image_channel: int) -> np.ndarray:
    """A picture of any size as uint8 `picture_shape`, RGB or (image_channel 1) grey.

    Resizes it (bicubic) until it just covers image_size and crops the middle, so that nothing is distorted.
    """
    C, H, W = picture_shape(image_size, image_channel)
    image = image.convert("L" if C == 1 else "RGB")
    pixels = np.asarray(ImageOps.fit(image, (W, H), method=Image.Resampling.BICUBIC))
    return pixels.reshape(H, W, C).transpose(2, 0, 1)


def fit_mask(mask: np.ndarray, image_size: Size) -> np.ndarray:
    """Which pixels of `fit_picture` any pixel of the mask has a part in: a mask, bool, to bool (H, W).

    Bicubic gives a weight to all pixels nearer than two of the coarser grid's, except to those exactly one away.
    """
    _, H, W = picture_shape(image_size, 1)
    scale = min(mask.shape[0] / H, mask.shape[1] / W)

    def weighed(length: int, side: int) -> np.ndarray:  # (side, length)
        centres = length / 2 + (np.arange(side) + 0.5 - side / 2) * scale
        apart = abs(np.arange(length) + 0.5 - centres[:, None]) / max(scale, 1)
        return ((apart < 2) & (apart != 1)).astype(np.float32)

    rows, columns = map(weighed, mask.shape, (H, W))
    return rows @ mask.astype(np.float32) @ columns.T > 0
