"""Pairs of pictures to interpolate between. (What is refused on the command line is in test_refusals.py.)"""

import numpy as np
import pytest
from PIL import Image

from datasets import load_images
from test_modes.pairs import chosen_pairs, pair_of_files, random_pairs
from utils.errors import ConfigError

# each picture has its number in all pixels
IMAGES = np.arange(20, dtype=np.uint8)[:, None, None, None].repeat(3, 1).repeat(4, 2).repeat(4, 3)


def numbers(pairs):
    assert pairs.dtype == np.uint8 and pairs.shape[2:] == (3, 4, 4)
    return pairs[:, :, 0, 0, 0].tolist()


def test_chosen_pairs_are_those_of_the_numbers():
    assert numbers(chosen_pairs(IMAGES, [3, 7])) == [[3], [7]]
    assert numbers(chosen_pairs(IMAGES, [3, 7, 0, 19, 5, 5])) == [[3, 0, 5], [7, 19, 5]]


def test_random_pairs_are_different_pictures_drawn_by_the_seed():
    first, second = numbers(random_pairs(IMAGES, 10, seed=1))
    assert len(first) == len(second) == 10 and {*first, *second} == set(range(20))
    assert numbers(random_pairs(IMAGES, 3, seed=1)) == numbers(random_pairs(IMAGES, 3, seed=1))
    assert numbers(random_pairs(IMAGES, 3, seed=1)) != numbers(random_pairs(IMAGES, 3, seed=2))


def test_pairs_can_be_read_from_a_memory_mapped_cache(tmp_path):
    IMAGES.tofile(tmp_path / "cache")
    mapped = np.memmap(tmp_path / "cache", np.uint8, "r", shape=IMAGES.shape)
    pairs = random_pairs(mapped, 4, seed=0)
    assert not isinstance(pairs, np.memmap) and pairs.flags.writeable
    assert numbers(pairs) == numbers(random_pairs(IMAGES, 4, seed=0))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pair_of_files_is_resized_and_cropped_as_for_training(tmp_path, channels):
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for i, file in enumerate(files):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 30, 3), np.uint8)).save(file)
    pair = pair_of_files(files, 8, channels)
    assert pair.shape == (2, 1, channels, 8, 8)
    assert (pair[:, 0] == load_images("Folder", tmp_path, "all", 8, channels)).all()


def test_a_file_of_floats_is_refused_by_name(tmp_path):
    files = [tmp_path / "float.tif"] * 2
    Image.fromarray(np.zeros((8, 8), np.float32)).save(files[0])
    with pytest.raises(ConfigError, match=r"float\.tif"):
        pair_of_files(files, 8, 1)
