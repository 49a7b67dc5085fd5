"""From uint8 pixels to the values in [-1, 1] that a network sees, and back; and pictures cut to size."""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


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


def fit_picture(image: Image.Image, image_size: int, image_channel: int) -> np.ndarray:
    """A picture of any size as uint8 (image_channel, image_size, image_size), RGB or (image_channel 1) grey.

    Resizes the shorter side to image_size pixels (bicubic) and crops the middle, so that nothing is distorted.
    """
    image = image.convert("L" if image_channel == 1 else "RGB")
    pixels = np.asarray(ImageOps.fit(image, (image_size, image_size), method=Image.Resampling.BICUBIC))
    return pixels.reshape(image_size, image_size, image_channel).transpose(2, 0, 1)


def fit_mask(mask: np.ndarray, image_size: int) -> np.ndarray:
    """Which pixels of `fit_picture` any pixel of the mask has a part in: bool (H, W) to bool (image_size, image_size).

    Bicubic gives a weight to all pixels nearer than two of the coarser grid's, except to those exactly one away.
    """
    scale = min(mask.shape) / image_size

    def weighed(length: int) -> np.ndarray:  # (image_size, length)
        centres = length / 2 + (np.arange(image_size) + 0.5 - image_size / 2) * scale
        apart = abs(np.arange(length) + 0.5 - centres[:, None]) / max(scale, 1)
        return ((apart < 2) & (apart != 1)).astype(np.float32)

    rows, columns = map(weighed, mask.shape)
    return rows @ mask.astype(np.float32) @ columns.T > 0
