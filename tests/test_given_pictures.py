"""The pictures that interpolate, inpaint and edit start from. (What is refused is in test_refusals.py.)"""

from argparse import Namespace

import numpy as np
import pytest
import torch
from helpers.scripts import refused
from PIL import Image

from datasets import Reading, load_images
from files.errors import ConfigError
from test_modes.given_pictures import given_pictures
from test_modes.interpolate import pairs

# each picture has its number in all pixels
IMAGES = np.arange(20, dtype=np.uint8)[:, None, None, None].repeat(3, 1).repeat(4, 2).repeat(4, 3)


def numbers(pictures):
    assert pictures.dtype == torch.uint8 and pictures.shape[-3:] == (3, 4, 4)
    return pictures[..., 0, 0, 0].tolist()


RECIPE = {"image_size": 4, "image_channel": 3, "dataset": "Digits", "data_path": "none", "split": "train"}
RECIPE |= {"sample_num": 4, **Reading()._asdict()}


def flags(**given):
    names = ("image_files", "image_indices", "data_name", "data_path", "split", "sample_num")
    return Namespace(**dict.fromkeys(names) | {"seed": 1} | given)


def pairs_of(monkeypatch, **given):
    monkeypatch.setattr("test_modes.given_pictures.load", lambda *_: torch.from_numpy(IMAGES))
    return numbers(pairs(flags(**given), RECIPE))


def test_chosen_pairs_are_neighbours(monkeypatch):
    assert pairs_of(monkeypatch, image_indices=[3, 7]) == [[3], [7]]
    assert pairs_of(monkeypatch, image_indices=[3, 7, 0, 19, 5, 5]) == [[3, 0, 5], [7, 19, 5]]


def test_random_pairs_are_different_pictures_drawn_by_the_seed(monkeypatch):
    first, second = pairs_of(monkeypatch, sample_num=100)
    assert len(first) == len(second) == 10 and {*first, *second} == set(range(20))
    assert pairs_of(monkeypatch, sample_num=9) == pairs_of(monkeypatch, sample_num=9)
    assert pairs_of(monkeypatch, sample_num=9) != pairs_of(monkeypatch, sample_num=9, seed=2)


def test_pictures_of_a_memory_mapped_cache_are_copies(tmp_path, monkeypatch):
    IMAGES.tofile(tmp_path / "cache")
    mapped = np.memmap(tmp_path / "cache", np.uint8, "r", shape=IMAGES.shape)
    monkeypatch.setattr("evaluation.real_pictures.load_images", lambda *_: mapped)
    pictures = given_pictures(flags(image_indices=[3, 7]), RECIPE, 0)
    assert numbers(pictures) == [3, 7] and numbers(pictures.zero_()) == [0, 0]  # the file cannot be written


@pytest.mark.parametrize("channels", [1, 3])
def test_files_are_resized_and_cropped_as_for_training(tmp_path, channels):
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for i, file in enumerate(files):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 30, 3), np.uint8)).save(file)
    pictures = given_pictures(flags(image_files=files), RECIPE | {"image_size": 8, "image_channel": channels}, 0)
    assert pictures.shape == (3, channels, 8, 8)
    assert (pictures.numpy() == load_images("Folder", tmp_path, "all", 8, channels)).all()


def test_a_file_of_floats_is_refused_by_name(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ConfigError, match=r"float\.tif"):
        given_pictures(flags(image_files=[tmp_path / "float.tif"] * 2), RECIPE, 0)


def test_a_folder_without_pictures_cannot_be_measured(trained, tmp_path, in_process):
    (tmp_path / "notes.txt").touch()
    args = ("--model_path", trained, "--test_mode", "evaluate", "--save_dir", tmp_path / "r", "--samples", tmp_path)
    refused(in_process("test_solver.py", *args), 1, tmp_path, "has no pictures")
