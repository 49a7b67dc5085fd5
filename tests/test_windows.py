"""What Windows does not allow: a file that is open in this process, or mapped, keeps its name and its place."""

import os
import shutil

import numpy as np
import pytest
from helpers.pictures import sample
from helpers.scripts import in_process, train
from helpers.systems import linux
from helpers.windows import as_on_windows
from PIL import Image

from datasets import load_images
from runs.recipe import plain_recipe
from runs.shared_weights import facts_of
from training.resume import begun


@pytest.fixture
def windows(monkeypatch):
    as_on_windows(monkeypatch)


def save_pictures(folder, count):
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.new("RGB", (9, 9), (i, 99, 9)).save(folder / f"{i}.png")


@linux
def test_the_emulation_refuses_what_windows_refuses(windows, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"12345678")
    mapped = np.memmap(tmp_path / "a", np.uint8, "r")
    with open(tmp_path / "b") as stream, pytest.raises(PermissionError, match="32"):
        (tmp_path / "b").replace(tmp_path / "c")
    for refused in (lambda: (tmp_path / "b").replace(tmp_path / "a"), (tmp_path / "a").unlink):
        with pytest.raises(PermissionError, match="32"):
            refused()
    with pytest.raises(PermissionError, match="32"):
        tmp_path.rename(tmp_path.with_name("moved"))
    with pytest.raises(PermissionError):
        os.open(tmp_path, os.O_RDONLY)
    assert stream.closed and mapped[0] == ord("1")
    del mapped
    (tmp_path / "b").replace(tmp_path / "a")


def test_a_run_that_began_on_windows_goes_on_elsewhere(tmp_path, monkeypatch):
    recipe = plain_recipe("A", init_from=r"C:\Users\me\x.safetensors")
    moved = recipe | {"init_from": "/home/me/x.safetensors"}
    monkeypatch.setattr("training.resume.find_checkpoint", lambda *_: {"recipe": recipe})
    assert begun(moved, tmp_path, "auto")[0] == moved
    assert facts_of(recipe, "ema", 1)["recipe"]["init_from"] == "x.safetensors"


@linux
@pytest.mark.slow
def test_a_run_is_trained_resumed_sampled_converted_and_evaluated(windows, tmp_path):
    pytest.importorskip("diffusers")
    assert train(tmp_path, whole=True).returncode == 0
    again = train(tmp_path, settings={"max_steps": 9})
    assert again.returncode == 0 and "resuming from step 6" in again.stdout, again.stderr
    checkpoint = tmp_path / "digits" / "digits.pt"
    assert {file.name for file in checkpoint.parent.glob("*.pt")} == {"digits.pt", "digits.1.pt"}
    one, results = ("--sample_info", "DDIM_1_0p0", "--sample_num", 4), tmp_path / "results"
    sample(checkpoint, results, *one, "--animate", "gif")
    for _ in range(2):
        sample(checkpoint, results, *one, "--sample_dir", tmp_path / "samples")
    sample(checkpoint, results, *one[:2], "--sample_num", 20, mode="evaluate")
    for target in ("digits.safetensors", "folder"):
        run = in_process("convert.py", checkpoint, tmp_path / target)
        assert run.returncode == 0, run.stderr
    run = in_process("convert.py", tmp_path / "folder", tmp_path / "back.safetensors")
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "digits.safetensors").read_bytes()
    assert sorted(file.name for file in (tmp_path / "samples").iterdir())[-2:] == ["000003.png", "samples.json"]
    assert not list(tmp_path.rglob("*.part"))


@linux
def test_a_cache_that_is_mapped_is_left_where_it_is(windows, tmp_path):
    save_pictures(tmp_path, 3)
    first = load_images("Folder", tmp_path, "train", 8, 3)
    save_pictures(tmp_path, 4)
    second = load_images("Folder", tmp_path, "train", 8, 3)
    assert len(list((tmp_path / ".cache").iterdir())) == 2 and (second[:3] == first).all()


def test_of_two_processes_that_decode_the_slower_one_takes_the_others_cache(tmp_path, monkeypatch):
    """Windows replaces no file that another process has mapped."""

    def slower(part, file):
        shutil.copy(part, file)
        raise PermissionError(13, "Permission denied", str(file))

    save_pictures(tmp_path, 3)
    monkeypatch.setattr(os, "replace", slower)
    pictures = load_images("Folder", tmp_path, "train", 8, 3)
    assert pictures.shape == (3, 3, 8, 8) and pictures[2, 0, 4, 4] == 2 and isinstance(pictures, np.memmap)
