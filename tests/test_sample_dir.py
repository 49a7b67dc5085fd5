"""--sample_dir: one file per sample, in several runs or processes, and never two kinds of samples in one folder."""

import json
import os
import re
import signal

import pytest
import torch
from helpers.pictures import pictures, sample
from helpers.scripts import forked, in_process, refused, together
from PIL import Image

import test_modes.random_gen
from runs.recipe import MODEL_KEYS
from test_modes.sample_dir import extends


def contents(folder):
    """What a folder holds, by name; a kill may leave a .part."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".part"}


def arguments(trained, tmp_path, *args):
    base = ["--model_path", trained, "--test_mode", "random_gen", "--save_dir", tmp_path / "r"]
    return list(map(str, [*base, *args]))


def test_samples_json_holds_all_that_the_samples_depend_on(trained, tmp_path):
    args = ["--sample_num", 1, "--sample_info", "DDIM_1_0p0", "--sample_dir", tmp_path / "d"]
    sample(trained, tmp_path, *args)
    content = json.loads((tmp_path / "d" / "samples.json").read_text())
    assert (content["sample_info"], content["seed"], content["timestep_num"]) == ("DDIM_1_0p0", 0, 1000)
    assert re.fullmatch(r"[0-9a-f]{64}", content["weights"])
    del content["timestep_density"]  # as in a folder of an earlier version, which goes on
    (tmp_path / "d" / "samples.json").write_text(json.dumps(content))
    assert "0 samples to draw" in sample(trained, tmp_path, *args).stdout


@pytest.mark.slow
def test_a_killed_sample_dir_continues_and_equals_an_uninterrupted_one(trained, tmp_path, monkeypatch):
    args = ["--sample_num", 30, "--sample_info", "DDPM_10_0p0", "--batch_size", 7]
    sample(trained, tmp_path / "a", *args, "--sample_dir", tmp_path / "whole")
    folder = tmp_path / "parts"
    batches, sample_progressive = iter(range(5)), test_modes.random_gen.sample_progressive

    def deadly(*args):
        batch = next(batches)
        for frame in sample_progressive(*args):
            if batch == 1 and frame.t < 500:
                os.kill(os.getpid(), signal.SIGKILL)
            yield frame

    with monkeypatch.context() as patch:
        patch.setattr("test_modes.random_gen.sample_progressive", deadly)
        command = ["test_solver.py", *arguments(trained, tmp_path, *args, "--sample_dir", folder)]
        assert forked(lambda: in_process(*command))() == -signal.SIGKILL
    assert len(list(folder.glob("*.png"))) == 7
    (folder / "000005.png").unlink()  # as if its batch had been cut in the middle
    assert any("final" in name for name in pictures(tmp_path / "r"))  # drawn with the first batch
    sample(trained, tmp_path / "r", *args, "--sample_dir", folder)
    assert contents(folder) == contents(tmp_path / "whole") and len(contents(folder)) == 31  # and samples.json
    again = sample(trained, tmp_path / "c", *args, "--sample_dir", folder)
    assert "0 samples to draw" in again.stdout and not pictures(tmp_path / "c")


def test_what_is_no_complete_sample_is_drawn_again(trained, tmp_path):
    args = ["--sample_num", 4, "--sample_info", "DDIM_2_0p0", "--sample_dir", tmp_path / "d"]
    sample(trained, tmp_path / "r", *args)
    whole = contents(tmp_path / "d")
    (tmp_path / "d" / "000001.png").write_bytes(b"")
    (tmp_path / "d" / "000002.png").write_bytes(whole["000002.png"][:-9])
    (tmp_path / "d" / "\u00b25.png").write_text("a number to Unicode, but not one of ours")
    sample(trained, tmp_path / "r", *args)
    assert {name: content for name, content in contents(tmp_path / "d").items() if name in whole} == whole


def test_a_folder_of_an_earlier_version_is_continued_and_keeps_its_identity(trained, tmp_path):
    """Which lacked the keys of the network that its weights do not show."""
    args = ["--sample_num", 2, "--sample_info", "DDIM_1_0p0", "--sample_dir", tmp_path / "d"]
    sample(trained, tmp_path / "r", *args)
    whole, file = contents(tmp_path / "d"), tmp_path / "d" / "samples.json"
    earlier = {k: v for k, v in json.loads(file.read_text()).items() if k not in MODEL_KEYS}
    file.write_text(json.dumps(earlier))
    (tmp_path / "d" / "000001.png").unlink()
    assert "1 samples to draw" in sample(trained, tmp_path / "r", *args).stdout
    assert contents(tmp_path / "d") | {file.name: whole[file.name]} == whole
    file.write_text(json.dumps(earlier | {"timestep_num": 999}))
    refused(in_process("test_solver.py", *arguments(trained, tmp_path, *args)), 2, "timestep_num: was 999, is 1000")


@pytest.mark.parametrize("key, value", [("image_size", 16), ("num_heads", 1), ("norm_groups", 4)])
def test_what_the_weights_do_not_show_makes_other_samples(trained, tmp_path, key, value):
    content = torch.load(trained, weights_only=True)
    was = content["recipe"][key]
    content["recipe"][key] = value
    torch.save(content, tmp_path / "other.pt")
    args = ["--sample_num", 1, "--sample_info", "DDIM_1_0p0", "--sample_dir", tmp_path / "d"]
    sample(trained, tmp_path / "r", *args)
    other = in_process("test_solver.py", *arguments(tmp_path / "other.pt", tmp_path, *args))
    refused(other, 2, f"{key}: was {was}, is {value}")


@pytest.mark.slow
def test_several_processes_share_a_sample_dir(trained, tmp_path):
    args = ["--sample_num", 20, "--sample_info", "DDIM_3_1p0", "--batch_size", 6]
    sample(trained, tmp_path / "one", *args, "--sample_dir", tmp_path / "whole")
    shared = arguments(trained, tmp_path, *args, "--sample_dir", tmp_path / "shared")
    runs = together(lambda: in_process("test_solver.py", *shared))
    assert [run.returncode for run in runs] == [0, 0], runs
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")
    assert sorted(pictures(tmp_path / "r")) == sorted(pictures(tmp_path / "one"))  # drawn once


def test_a_sample_dir_of_another_run_is_refused_and_left_alone(trained, tmp_path):
    args = arguments(trained, tmp_path, "--sample_num", 4, "--sample_info", "DDIM_2_0p0", "--sample_dir")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ".DS_Store").touch()  # of macOS, in any folder
    assert in_process("test_solver.py", *args, tmp_path / "d").returncode == 0
    before = contents(tmp_path / "d")
    for other, says in (
        (["--seed", 5], ["seed: was 0, is 5"]),
        (["--weights", "raw"], ["weights: was"]),
        (["--sample_info", "DDIM_3_0p0"], ["sample_info: was 'DDIM_2_0p0', is 'DDIM_3_0p0'"]),
        (["--sample_num", 3], ["sample 3", "--sample_num 3: give --sample_num 4 or more"]),
        (["--sample_info", "DDIM_2_0p0", "DDIM_3_0p0"], ["one --sample_info"]),
    ):
        refused(in_process("test_solver.py", *args, tmp_path / "d", *other), 2, *says)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.png").write_bytes(b"mine")
    refused(in_process("test_solver.py", *args, tmp_path / "mine"), 2, "mine holds files", "empty")
    (tmp_path / "broken").mkdir()
    for text in ("{", "5", "[1]"):
        (tmp_path / "broken" / "samples.json").write_text(text)
        refused(in_process("test_solver.py", *args, tmp_path / "broken"), 2, "samples.json is damaged")
    assert contents(tmp_path / "d") == before
    assert contents(tmp_path / "mine") == {"holiday.png": b"mine"}


def test_more_samples_in_the_proportions_of_the_data_continue_a_folder(labelled, tmp_path):
    """Whose list of classes is as long as the samples, and begins as before."""
    command = ["test_solver.py", "--model_path", labelled, "--test_mode", "evaluate", "--sample_dir", tmp_path / "d"]
    command += ["--batch_size", 12, "--data_path", "none", "--save_dir", tmp_path / "r", "--sample_info", "DDIM_1_0p0"]
    for count, new in ((12, 12), (15, 3), (15, 0)):
        run = in_process(*command, "--sample_num", count)
        assert run.returncode == 0 and f"{new} samples to draw" in run.stdout, run.stderr
        assert "samples of" in run.stdout and " in " not in run.stdout.partition("samples of")[2].partition(",")[0]
        assert len(json.loads((tmp_path / "d" / "samples.json").read_text())["labels"]) == count
    shown = [file for name, file in pictures(tmp_path / "r").items() if "final" in name]
    assert len(shown) == 1 and len({*json.loads((tmp_path / "d" / "samples.json").read_text())["labels"]}) == 10
    with Image.open(shown[0]) as image:
        assert image.height == 8 + 10 * 44  # a row a class
    was = json.loads((tmp_path / "d" / "samples.json").read_text())["labels"]
    assert not extends([*was[:13], 1 - was[13], *was[14:], 0], was, 1)  # of samples that another process may be drawing
    refused(in_process(*command, "--sample_num", 15, "--classes", "even"), 2, "labels: was [")
