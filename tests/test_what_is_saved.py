"""What a training saves can be read again: checked by the reader's own check before the first step."""

import shutil
from dataclasses import replace

import pytest
from helpers.pictures import sample
from helpers.scripts import LABELLED, in_process, refused, train
from PIL import Image

from runs.checkpoint import load_checkpoint
from runs.recipe import KEYS
from runs.run import load_run


def class_folders(folder, names):
    for i, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (i % 255, i // 255, 9)).save(folder / name / "0.png")


def train_on(folder, *args, **settings):
    (folder / "c.yaml").write_text("{Train_Setting: {}, Train_Data: {Mine: {image_size: 8, label_dropout: 0.2}}}")
    args = ("--config", folder / "c.yaml", "--data_path", folder / "data", *args)
    return train(folder / "runs", *args, data_name="Mine", settings={"batch_size": 2} | LABELLED | settings)


@pytest.mark.parametrize("dry", [("--dry_run",), ()])
def test_more_classes_than_a_recipe_holds_are_refused_before_the_first_step(tmp_path, dry, monkeypatch):
    """With a limit of three: 10,000 folders take seconds to make and to read."""
    assert KEYS["class_names"].most == KEYS["num_classes"].most == 10_000
    monkeypatch.setitem(KEYS, "class_names", replace(KEYS["class_names"], most=3))
    class_folders(tmp_path / "data", "abc")
    assert train_on(tmp_path, "--dry_run").returncode == 0
    class_folders(tmp_path / "data", "d")
    refused(train_on(tmp_path, *dry), 2, "class_names must be a list of names", "at most 3")
    assert not list(tmp_path.rglob("*.pt"))


def test_a_class_of_any_name_is_refused_or_can_be_drawn(tmp_path):
    class_folders(tmp_path / "data", ["a" * 250, "b", "c: [1]", "\u732b"])
    run = train_on(tmp_path)
    if run.returncode:
        refused(run, 2, "class_names")
        assert not list(tmp_path.rglob("*.pt"))
    else:
        assert len(load_run(tmp_path / "runs" / "mine" / "mine.pt").recipe["class_names"]) == 4


@pytest.mark.parametrize("length, fits", [(229, True), (230, False)])
def test_a_name_that_the_file_system_cannot_hold_is_refused_before_the_first_step(tmp_path, length, fits):
    name = "n" * length
    run = train(tmp_path, settings={"pth_save_name": name, "max_steps": 1})
    if fits:
        assert run.returncode == 0 and load_checkpoint(tmp_path / name / f"{name}.pt")["step"] == 1, run.stderr
    else:
        refused(run, 2, "pth_save_name", "at most 229 bytes")
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["n" * 229, "\u732b" * 76])  # 229 and 228 bytes
def test_a_run_of_any_name_can_be_drawn_from(trained, tmp_path, name):
    shutil.copy(trained, tmp_path / f"{name}.pt")
    sample(tmp_path / f"{name}.pt", tmp_path / "out", "--sample_info", "DPMpp_2_0p5_quad", "--seed", 2**63 - 1)
    (file,) = (tmp_path / "out").glob("*_final.png")
    assert f"_{name[:40]}" in file.name and "_DPMpp_2_0p5_quad_" in file.name


def test_a_class_that_has_no_pictures_any_more_is_named_when_a_run_is_resumed(tmp_path):
    """Earlier versions counted empty folders, too."""
    class_folders(tmp_path / "data", ["a", "b", "gone"])
    assert train_on(tmp_path).returncode == 0
    (tmp_path / "data" / "gone" / "0.png").unlink()
    refused(train_on(tmp_path), 1, "num_classes: was 3, is 2", "a folder without pictures is no class: gone")


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_first_checkpoint_says_nothing_about_the_next(tmp_path):
    """Its recipe.yaml is left; the next run in the folder starts from other weights, with other betas."""
    for name, betas in (("one", "cosine"), ("two", "linear")):
        assert train(tmp_path / name, settings={"beta_schedule": betas}).returncode == 0
        run = in_process("convert.py", tmp_path / name / "digits" / "digits.pt", tmp_path / f"{name}.safetensors")
        assert run.returncode == 0, run.stderr
    for name in ("one", "two"):
        run = train(tmp_path / "runs", "--init_from", tmp_path / f"{name}.safetensors")
        assert run.returncode == 0, run.stderr
        for file in (tmp_path / "runs" / "digits").glob("*.pt" if name == "one" else "none"):
            file.unlink()
    assert load_run(tmp_path / "runs" / "digits" / "digits.pt").recipe["beta_schedule"] == "linear"


def test_a_training_that_has_nothing_to_do_says_what_is_there(tmp_path):
    assert train(tmp_path, settings={"max_steps": 4}).returncode == 0
    run = train(tmp_path, settings={"max_steps": 2})
    assert run.returncode == 0 and f"{tmp_path / 'digits'} holds 4 steps, and 2 were asked for" in run.stdout
    (tmp_path / "digits" / "digits.pt").unlink()
    run = train(tmp_path, settings={"max_steps": 2})
    assert "holds 3 steps, and 2 were asked for" in run.stdout and not (tmp_path / "digits" / "digits.pt").exists()


def test_two_weights_that_look_alike_have_two_pictures(labelled, tmp_path):
    sample(labelled, tmp_path, "--sample_num", 10, "--sample_info", "DDIM_1_0p0", "--guidance", 2.5, 2.5000001, 3)
    names = {file.name.partition("_digits_")[2] for file in tmp_path.glob("*_final.png")}
    assert names == {f"DDIM_1_0p0_guidance{weight}_final.png" for weight in ("2p5", "2p5000001", "3")}


def test_training_names_the_weights_that_are_missing(tmp_path):
    start = ("--data_name", "Digits", "--save_dir", tmp_path / "runs", "--init_from", tmp_path / "nothing.safetensors")
    refused(in_process("train_solver.py", *start), 1, "nothing.safetensors does not exist")
