"""convert.py: weights to share, and fine-tuning from them."""

import json
import random
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from helpers import scripts
from helpers.scripts import on_a_full_disk, refused, script
from helpers.systems import linux
from PIL import Image

from files.atomic import part_folder
from files.errors import CheckpointError
from runs.run import load_run


@pytest.fixture
def convert(in_process):
    return partial(in_process, "convert.py")


def picture(in_process, model, folder):
    args = ("--test_mode", "random_gen", "--sample_info", "DDIM_3_0p0", "--sample_num", 4, "--precision", "fp32")
    run = in_process("test_solver.py", "--model_path", model, "--save_dir", folder, *args)
    assert run.returncode == 0, run.stderr
    return np.asarray(Image.open(next(folder.glob("*_final.png")))).astype(int)


@pytest.fixture(scope="module")
def shared(in_process, trained, tmp_path_factory):
    """The trained run as a .safetensors."""
    file = tmp_path_factory.mktemp("shared") / "checkpoints" / "digits.safetensors"
    run = in_process("convert.py", trained, file)
    assert run.returncode == 0, run.stderr
    return file


@pytest.mark.slow
def test_the_command_line_writes_the_same_file(trained, shared, tmp_path):
    run = script("convert.py", trained, tmp_path / "digits.safetensors")
    assert run.returncode == 0 and "digits.safetensors: Digits, ema weights of step 6" in run.stdout, run.stderr
    assert (tmp_path / "digits.safetensors").read_bytes() == shared.read_bytes()


def test_shared_weights_are_one_set_and_carry_their_recipe(in_process, trained, shared, tmp_path):
    ours, theirs = load_run(trained), load_run(shared)
    assert all(torch.equal(a, b) for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True))
    places = {"save_dir", "data_path"}
    assert {key for key in ours.recipe if ours.recipe[key] != theirs.recipe[key]} <= places
    assert (theirs.step, theirs.weights, theirs.recipe["save_dir"]) == (6, "ema", "train_results")
    assert str(trained.parent.parent).encode() not in shared.read_bytes()
    assert np.array_equal(picture(in_process, trained, tmp_path / "a"), picture(in_process, shared, tmp_path / "b"))
    with pytest.raises(CheckpointError, match="holds only the averaged weights"):
        load_run(shared, weights="raw")


def test_the_folder_of_a_run_stands_for_its_checkpoint(in_process, convert, trained, shared, tmp_path, monkeypatch):
    assert convert(trained.parent, tmp_path / "x.safetensors").returncode == 0
    assert (tmp_path / "x.safetensors").read_bytes() == shared.read_bytes()
    sample = ("--test_mode", "random_gen", "--sample_num", 1, "--sample_info", "DDIM_1", "--save_dir", tmp_path)
    assert in_process("test_solver.py", "--model_path", trained.parent, *sample).returncode == 0
    assert list(tmp_path.glob("*_digits_DDIM_1_0p0_final.png"))
    monkeypatch.chdir(trained.parent)
    assert load_run(".").step == load_run(trained).step


def test_raw_weights_and_half_precision(convert, trained, shared, tmp_path):
    assert convert(trained, tmp_path / "raw.safetensors", "--weights", "raw").returncode == 0
    raw = load_run(tmp_path / "raw.safetensors")
    last = load_run(trained, weights="raw")
    assert raw.weights == "raw" and all(map(torch.equal, raw.model.parameters(), last.model.parameters()))
    assert convert(shared, tmp_path / "half.safetensors", "--dtype", "float16").returncode == 0
    assert (tmp_path / "half.safetensors").stat().st_size < 0.7 * shared.stat().st_size  # the recipe stays as long
    runs = load_run(tmp_path / "half.safetensors"), load_run(shared)
    for half, whole in zip(*(run.model.parameters() for run in runs), strict=True):
        assert half.dtype == torch.float32
        # float16 has 11 bits, and 2**-24 as its smallest step
        torch.testing.assert_close(half, whole, rtol=2**-11, atol=2**-25)


def test_a_run_goes_to_diffusers_and_back(convert, trained, shared, tmp_path):
    """Its card is complete, and what comes back is the same file that was made without the way round."""
    out = convert(trained, tmp_path / "digits-diffusers")
    assert out.returncode == 0, out.stderr
    assert re.search(r"differ by at most \d\.\de-\d+", out.stdout)
    card = (tmp_path / "digits-diffusers" / "README.md").read_text()
    here = 'from_pretrained("digits-diffusers")'
    for text in ("8x8", "Digits", "6 steps of 8: 48 pictures", "DPMpp_20_0p0", here):
        assert text in card
    assert "{" not in card.replace("{{", "") and Image.open(tmp_path / "digits-diffusers" / "samples.png").width > 200
    code, names = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], {}
    code = code.replace(here, f'from_pretrained("{tmp_path}/digits-diffusers")')
    exec(code.replace("=50", "=2"), names)  # as the card says
    assert len(names["pictures"]) == 16 and names["pictures"][0].size == (8, 8)

    assert convert(tmp_path / "digits-diffusers", tmp_path / "digits.safetensors").returncode == 0
    assert (tmp_path / "digits.safetensors").read_bytes() == shared.read_bytes()


@pytest.mark.slow
def test_fine_tuning_starts_from_shared_weights_and_resumes(in_process, shared, tmp_path):
    """Network and diffusion are those of the file, all else is that of the block."""
    mine = "{base: Digits, learning_rate: 0, timestep_num: 77, batch_size: 4}"
    block = f"Train_Setting: {{}}\nTrain_Data: {{Mine: {mine}, Digits: {{}}}}"
    (tmp_path / "config.yaml").write_text(block)
    args = ("--config", tmp_path / "config.yaml", "--data_name", "Mine", "--save_dir", tmp_path / "runs")
    args += ("--init_from", shared)
    steps = ("--set", "sample_num=4", "preview_info=DDIM_2_0p0")
    run = in_process("train_solver.py", *args, *steps, "max_steps=2")
    assert run.returncode == 0, run.stderr
    tuned, first = load_run(tmp_path / "runs" / "mine" / "mine.pt", "raw"), load_run(shared)
    assert (tuned.recipe["model_channels"], tuned.recipe["timestep_num"], tuned.recipe["batch_size"]) == (8, 1000, 4)
    assert tuned.step == 2  # at learning rate 0 the weights are still those it started from
    assert all(map(torch.equal, tuned.model.parameters(), first.model.parameters()))
    moved = tmp_path / "moved" / shared.name  # the file is not needed any more; its name is
    again = in_process("train_solver.py", *args[:-1], moved, *steps, "max_steps=3")
    assert again.returncode == 0 and "resuming from step 2" in again.stdout
    shutil.copy(shared, tmp_path / "other.safetensors")
    other = in_process("train_solver.py", *args[:-1], tmp_path / "other.safetensors", *steps, "max_steps=4")
    refused(other, 1, "init_from: was 'digits.safetensors', is 'other.safetensors'")
    wider = in_process("train_solver.py", *args, *steps, "model_channels=16", "--save_dir", tmp_path)
    refused(wider, 1, "do not fit the network")


def test_convert_refuses(in_process, convert, trained, shared, tmp_path):
    refused(convert(trained, shared), 2, "exists")
    refused(convert(trained, tmp_path / "x.pt"), 2, "a .safetensors or a folder")
    refused(convert(trained, tmp_path / "x", "--dtype", "float16"), 2, "--dtype is for a .safetensors")
    refused(convert(tmp_path / "nothing.pt", tmp_path / "x"), 1, "does not exist")
    refused(convert(shared, tmp_path / "x", "--image_size", 32), 2, "image_size=32", "was trained with 8")
    refused(convert(shared, tmp_path / "x", "--weights", "raw"), 1, "only the averaged weights")
    refused(convert(tmp_path, tmp_path / "x"), 1, "is not a diffusers folder")
    sample = ("test_solver.py", "--test_mode", "random_gen", "--save_dir", tmp_path / "r", "--model_path")
    refused(in_process(*sample, tmp_path), 1, "is a folder: convert.py")
    assert not (tmp_path / "x").exists() and list(tmp_path.iterdir()) == []


@linux
def test_a_link_to_nothing_is_no_new_name(convert, trained, tmp_path):
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    refused(convert(trained, tmp_path / "dangling"), 2, "exists")


def edited(shared, file, **changes):
    """The file with other facts, and without a checksum, as in files of earlier versions."""
    tensors = safetensors.torch.load_file(shared)
    with safetensors.safe_open(shared, "pt") as content:
        facts = json.loads(content.metadata()["diffusion_pytorch"])
    del facts["sha256"]
    safetensors.torch.save_file(tensors, file, {"diffusion_pytorch": json.dumps(facts | changes)})
    return file


def test_any_flipped_bit_of_shared_weights_is_detected(shared, tmp_path):
    whole, chance, file = shared.read_bytes(), random.Random(0), tmp_path / "digits.safetensors"
    header, first = 8 + int.from_bytes(whole[:8], "little"), load_run(shared)
    bits = [chance.randrange(8 * header, 8 * len(whole)) for _ in range(30)]  # in the weights
    for bit in bits + [chance.randrange(8 * header) for _ in range(40)]:  # in names, shapes and recipe
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        try:
            run = load_run(file)
        except CheckpointError as error:
            assert bit < 8 * header or "is damaged: its content does not match its checksum" in str(error)
            continue
        assert bit < 8 * header and run.recipe == first.recipe  # the checksum has lost its name
        assert all(map(torch.equal, run.model.parameters(), first.model.parameters()))


def test_bad_weights_files_are_one_clear_line(trained, shared, tmp_path):
    whole = shared.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-1])
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "pickle.safetensors").write_bytes(trained.read_bytes())
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    says = {"cut": "damaged", "empty": "damaged", "pickle": "damaged or not a safetensors", "foreign": "has no recipe"}
    for name, text in says.items():
        with pytest.raises(CheckpointError, match=text):
            load_run(tmp_path / f"{name}.safetensors")
    recipe = load_run(shared).recipe
    for changes, text in [
        ({"version": 2}, "format 2; this version reads format 1"),
        ({"recipe": recipe | {"model_channels": 16}}, "do not fit the network"),
        ({"recipe": {"data_name": "A"}}, "lacks dataset, image_size"),
        ({"recipe": {k: v for k, v in recipe.items() if k != "beta_schedule"}}, "lacks beta_schedule"),
        ({"recipe": [1]}, "lacks data_name, dataset"),
        ({"recipe": recipe | {"image_size": "big"}}, "image_size must be a whole number"),
    ]:
        with pytest.raises(CheckpointError, match=text):
            load_run(edited(shared, tmp_path / "edited.safetensors", **changes))


def test_a_key_that_is_newer_than_the_file_has_its_default(shared, tmp_path):
    recipe = load_run(shared).recipe
    older = {key: value for key, value in recipe.items() if key not in ("norm_groups", "diffusers_unet", "init_from")}
    assert load_run(edited(shared, tmp_path / "older.safetensors", recipe=older)).recipe == recipe


@pytest.mark.parametrize("target", ["digits.safetensors", "folder"])
def test_of_two_conversions_to_one_name_the_first_stays(trained, tmp_path, monkeypatch, target):
    def overtaken(*args, **keys):
        (tmp_path / target).write_text("of another process")
        return load_run(*args, **keys)

    monkeypatch.setattr("convert.load_run", overtaken)
    ended = scripts.in_process("convert.py", trained, tmp_path / target)
    refused(ended, 1, target, "was written by another process in the meantime")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["of another process"]


def test_a_folder_that_is_filled_at_the_last_moment_stays(tmp_path, monkeypatch):
    def late(part, folder, rename=Path.rename):
        folder.mkdir()
        (folder / "theirs").touch()
        rename(part, folder)

    monkeypatch.setattr(Path, "rename", late)
    with pytest.raises(OSError, match="not empty"), part_folder(tmp_path / "folder") as part:
        (part / "ours").touch()
    assert [file.name for file in tmp_path.rglob("*")] == ["folder", "theirs"]


@pytest.mark.parametrize("target", ["digits.safetensors", "folder"])
def test_a_conversion_to_a_full_disk_leaves_nothing(trained, tmp_path, target):
    run = on_a_full_disk(lambda: scripts.in_process("convert.py", trained, tmp_path / target), 20_000)
    refused(run, 1, "File too large")
    assert not list(tmp_path.iterdir())


def test_weights_beyond_float16_are_refused(convert, trained, tmp_path):
    content = torch.load(trained, weights_only=True)
    content["ema"]["out.2.bias"][0] = 1e5
    torch.save(content, tmp_path / "large.pt")
    run = convert(tmp_path / "large.pt", tmp_path / "x.safetensors", "--dtype", "float16")
    refused(run, 1, "out.2.bias", "float16")
    assert list(tmp_path.iterdir()) == [tmp_path / "large.pt"]
