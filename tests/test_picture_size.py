"""Pictures and films that no file can hold are refused before the network is called."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from helpers.scripts import in_process, refused
from PIL import Image

from files.errors import ConfigError
from test_modes.job import Job
from test_modes.random_gen import check_pictures
from utils.pictures import MOST, check_size, grid, sheet_size


@pytest.mark.parametrize("count, columns, size", [(10, 4, (8, 8)), (3, 7, (32, 20)), (2, 1, (5, 12)), (9, 9, (17, 17))])
def test_the_size_is_that_of_the_grid(count, columns, size):
    assert sheet_size(count, columns, size) == grid(torch.zeros(count, 1, *size), columns).size[::-1]


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_the_formats_hold_no_more(tmp_path, kind):
    Image.new("L", (MOST[kind], 1)).save(tmp_path / f"a.{kind}")
    with Image.open(tmp_path / f"a.{kind}") as image:
        assert image.size == (MOST[kind], 1)
    with pytest.raises(Exception):  # noqa: B017 - struct.error or ValueError, as Pillow likes
        Image.new("L", (MOST[kind] + 1, 1)).save(tmp_path / f"b.{kind}")


def test_the_largest_is_allowed_and_one_more_is_not():
    columns = (MOST["webp"] - 2) // 34
    check_size(columns, columns, (32, 32), "webp")
    check_size(columns + 1, columns + 1, (32, 32), "gif")
    for count, across in ((columns + 1, columns + 1), (columns + 1, 1)):
        with pytest.raises(ConfigError, match=r"film as webp of .*16,390.*larger than 16,383"):
            check_size(count, across, (32, 32), "webp")


@pytest.mark.parametrize(
    "mode, args, says",
    [
        ("edit", ["--sample_num", 70, "--animate", "webp"], "a film as webp of 19,042x172 pixels"),
        ("edit", ["--sample_num", 250, "--animate", "gif"], "a film as gif of 68,002x172 pixels"),
        ("edit", ["--sample_num", 10**7], "a picture of 2,720,000,002x172 pixels"),
        ("interpolate", ["--sample_num", 240000, "--animate", "webp"], "a film as webp of 16,662x36 pixels"),
        ("interpolate", ["--image_indices", *[0] * 3278], "a picture of 528x65,568 pixels"),
        ("inpaint", ["--mask_box", 2, 2, 3, 3, "--sample_num", 500, "--animate", "webp"], "of 17,070x274 pixels"),
        ("inpaint", ["--mask_box", 2, 2, 3, 3, "--sample_num", 30000], "a picture of 1,020,070x274 pixels"),
    ],
)
def test_they_are_refused_before_the_first_call(trained, tmp_path, monkeypatch, mode, args, says):
    monkeypatch.setattr("diffusion.gaussian.GaussianDiffusion.predict", lambda *_: pytest.fail("the network is called"))
    base = ["--model_path", trained, "--save_dir", tmp_path, "--data_name", "Digits"]
    refused(
        in_process("test_solver.py", *base, "--test_mode", mode, *args), 2, says, "larger than", "take fewer pictures"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["DDIM_{}_0p0", "DDIM_1_0p{:02}"])
def test_a_table_may_have_too_many_columns_or_rows(trained, tmp_path, monkeypatch, name):
    monkeypatch.setattr("diffusion.gaussian.GaussianDiffusion.predict", lambda *_: pytest.fail("the network is called"))
    specs = [name.format(n) for n in range(1, 31)]
    command = ["test_solver.py", "--model_path", trained, "--save_dir", tmp_path, "--test_mode", "compare"]
    run = in_process(*command, "--sample_num", 10**4, "--sample_info", *specs)
    refused(run, 2, "102,002", "larger than", "take fewer pictures")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", [[], ["--sample_dir", "samples"]])
def test_a_film_that_is_too_large_is_refused_before_it_is_drawn(trained, tmp_path, monkeypatch, where):
    monkeypatch.setattr("diffusion.gaussian.GaussianDiffusion.predict", lambda *_: pytest.fail("the network is called"))
    monkeypatch.setitem(MOST, "webp", 100)
    base = ["--model_path", trained, "--save_dir", tmp_path, "--test_mode", "random_gen", "--animate", "webp"]
    where = [*where[:1], *(tmp_path / name for name in where[1:])]
    refused(
        in_process("test_solver.py", *base, *where, "--sample_num", 9), 2, "film as webp of 104x104", "fewer pictures"
    )
    assert not list(tmp_path.iterdir())


def test_a_row_for_each_class_may_be_too_wide(labelled, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusion.gaussian.GaussianDiffusion.predict", lambda *_: pytest.fail("the network is called"))
    monkeypatch.setitem(MOST, "png", 1000)  # a square of 100 has 342 pixels a side
    base = ["--model_path", labelled, "--save_dir", tmp_path, "--test_mode", "random_gen", "--sample_num", 100]
    refused(in_process("test_solver.py", *base, "--labels", 3), 2, "a picture of 3,402x36 pixels")


def test_many_classes_are_checked_as_they_are_drawn():
    """One of each as a square; with more a row for each class, also where they are not equally many."""
    for classes, count, size, fits in ((1000, 1000, 64, True), (600, 1201, 128, False), (500, 1001, 128, True)):
        run = SimpleNamespace(recipe={"image_size": size})
        args = SimpleNamespace(batch_size=9, animate=None, labels=None)
        job = Job(args, run, [], "fp32", "", list(range(classes)), [str(i) for i in range(classes)], [1.0])
        with nullcontext() if fits else pytest.raises(ConfigError, match="392x78,002 pixels"):
            check_pictures(job, count)
