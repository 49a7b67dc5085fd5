"""The only way from pixels to what a network sees, and back."""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def normalize(images: Tensor) -> Tensor:
    """uint8 pixels, any shape, to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Floats to uint8 pixels, -1 black and 1 white: clamped, rounded and only then cast."""
    return ((x.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)


def fit_picture(image: Image.Image, image_size: int, image_channel: int) -> np.ndarray:
    """An RGB or grey picture of any size as uint8 (image_channel, image_size, image_size).

    Its shorter side is resized (bicubic), the middle of the longer one kept: nothing is squashed.
    """
    image = image.convert("L" if image_channel == 1 else "RGB")
    pixels = np.asarray(ImageOps.fit(image, (image_size, image_size), method=Image.Resampling.BICUBIC))
    return pixels.reshape(image_size, image_size, image_channel).transpose(2, 0, 1)
