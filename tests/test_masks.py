"""Masks: nothing of what they cover is left in a kept pixel, at any size; and what is no mask is refused."""

from argparse import Namespace

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from datasets.pixels import fit_mask, fit_picture
from files.errors import ConfigError
from test_modes.inpaint import hole_of

# --- resized and cropped ----------------------------------------------------------------------------------------------

SHAPES = [(256, 256, 32), (75, 301, 32), (300, 200, 28), (40, 33, 32), (32, 35, 32), (9, 13, 28), (64, 64, 64)]


@pytest.mark.parametrize("height, width, image_size", SHAPES)
def test_an_object_under_a_mask_leaves_no_trace_and_nothing_else_is_filled(height, width, image_size):
    """Pillow itself is the judge: with 8 bits, and with floats, where no weight is rounded away."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = np.zeros((height, width), bool)
        y, x, h, w = (rng.integers(n) for n in (height, width, height // 3, width // 3))
        mask[y : y + h + 1, x : x + w + 1] = True
        hole, picture = fit_mask(mask, image_size), rng.integers(0, 256, (height, width, 3), np.uint8)
        before = fit_picture(Image.fromarray(picture), image_size, 3)
        for colour in ((0, 0, 0), (255, 255, 255), (255, 0, 255)):
            picture[mask] = colour
            after = fit_picture(Image.fromarray(picture), image_size, 3)
            assert (after == before)[:, ~hole].all()
        weights = Image.fromarray(np.where(mask, rng.uniform(1e5, 1e6, mask.shape), 0).astype(np.float32))
        reached = ImageOps.fit(weights, (image_size, image_size), method=Image.Resampling.BICUBIC)
        assert (hole == (np.asarray(reached) != 0)).all()


def test_a_scratch_does_not_vanish():
    mask = np.zeros((1024, 1024), bool)
    mask[100:900, 512] = True
    assert fit_mask(mask, 32)[4:28].any(1).all()


# --- files ------------------------------------------------------------------------------------------------------------

SQUARE = np.zeros((32, 32), np.uint8)
SQUARE[8:20, 8:20] = 255


def hole(tmp_path, mask, image_size=32):
    """hole_of a mask with this content, for a picture of the same size."""
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.new("RGB", mask.shape[1::-1]).save(tmp_path / "picture.png")
    args = Namespace(mask=tmp_path / "mask.png", mask_box=None, image_files=[tmp_path / "picture.png"])
    return hole_of(args, image_size).numpy()


@pytest.mark.parametrize(
    "mask", [SQUARE, SQUARE > 0, np.dstack([SQUARE] * 3), np.dstack([SQUARE] * 3 + [SQUARE | 255])]
)
def test_white_is_filled_in_any_kind_of_file(tmp_path, mask):
    assert (hole(tmp_path, mask) == (SQUARE > 0)).all()


def test_soft_edges_are_allowed(tmp_path):
    y, x = np.mgrid[:32, :32]
    soft = (np.clip(11 - np.hypot(y - 16, x - 16), 0, 6) / 6 * 255).astype(np.uint8)  # a disc with a rim of 6 pixels
    assert (hole(tmp_path, soft) == (soft >= 128)).all()


def test_a_mask_with_transparent_parts_is_refused_whichever_way_it_is_meant(tmp_path):
    erased = np.dstack([np.full((32, 32, 3), 255, np.uint8), 255 - SQUARE])
    painted = np.dstack([SQUARE, np.zeros((32, 32, 2), np.uint8), SQUARE])
    for mask in (erased, painted):
        with pytest.raises(ConfigError, match=r"mask.png: it has transparent parts: .* white where to fill"):
            hole(tmp_path, mask)


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_a_photograph_is_no_mask(tmp_path, name):
    photograph = load_sample_image(name)
    with pytest.raises(ConfigError, match="% is neither black nor white, as in a photograph: its values are [05] to 2"):
        hole(tmp_path, photograph)


@pytest.mark.parametrize(
    "mask, says",
    [
        (SQUARE // 255, "nothing to fill: its values are 0 to 1, and 128 or more is filled"),
        (np.dstack([SQUARE, SQUARE * 0, SQUARE * 0]), "nothing to fill: its values are 0 to 76, and 128"),  # red
        (SQUARE | 255, "nothing to keep: its values are 255 to 255"),
    ],
)
def test_a_mask_that_leaves_nothing_says_which_values_it_has(tmp_path, mask, says):
    with pytest.raises(ConfigError, match=f"mask.png: at 32x32 pixels it leaves {says}"):
        hole(tmp_path, mask)
