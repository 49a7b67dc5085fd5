"""Two processes at once, kills, signals and exploding weights: no picture and no good checkpoint is lost."""

import json
import os
import shutil
import signal
import time
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from helpers.pictures import sampling
from helpers.scripts import forked, in_process, refused, resumes_to_the_same_end, state_hash, train
from helpers.systems import linux
from PIL import Image

import datasets.cache
import training.preview
from files.atomic import PART
from training.log import read_log


@pytest.fixture
def pictures(tmp_path):
    """A folder of 24 pictures, and a configuration in which it is the data set Mine."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(24):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 20, 3), np.uint8)).save(folder / f"{i}.png")
    (tmp_path / "config.yaml").write_text(f"{{Train_Setting: {{}}, Train_Data: {{Mine: {{data_path: {folder}}}}}}}")
    return folder


def train_on(pictures, save_dir, **settings):
    settings = {"image_size": 8, "max_steps": 2} | settings
    config = ("--config", pictures.parent / "config.yaml")
    return train(pictures.parent / save_dir, *config, data_name="Mine", settings=settings)


def cached(pictures):
    """The names of the files in the cache."""
    return sorted(file.name for file in (pictures / ".cache").iterdir()) if (pictures / ".cache").exists() else []


def instead(monkeypatch, what, change):
    """Puts change(original) in the place of a function of datasets.cache."""
    monkeypatch.setattr(datasets.cache, what, change(getattr(datasets.cache, what)))


# --- the cache --------------------------------------------------------------------------------------------------------


@linux
def test_two_trainings_may_decode_one_folder_at_the_same_time(pictures, monkeypatch):
    barrier = get_context("fork").Barrier(2)

    def together(decode):
        def call(image, *args):
            if image.size == (20, 20):  # each of the first pictures waits for the other process
                barrier.wait(60)
            return decode(image, *args)

        return call

    instead(monkeypatch, "fit_picture", together)
    children = [forked(lambda name=name: train_on(pictures, name)) for name in ("one", "two")]
    for child in children:
        ended = child()
        assert ended.returncode == 0, ended.stderr
    assert len(cached(pictures)) == 1 and cached(pictures)[0].endswith(".u8")
    again = train_on(pictures, "three")
    assert again.returncode == 0 and "24 pictures from the cache" in again.stdout


@pytest.mark.parametrize(
    "error, says",
    [(MemoryError(), "not enough memory"), (PermissionError(13, "Permission denied"), "Permission denied")],
)
def test_an_error_of_the_machine_does_not_drop_a_picture(pictures, monkeypatch, error, says):
    with monkeypatch.context() as patch:

        def failing(open_picture):
            def call(file, *_):
                if file.name == "7.png":
                    raise error
                return open_picture(file)

            return call

        instead(patch, "open_picture", failing)
        refused(train_on(pictures, "runs"), 1, "7.png", says)
    assert cached(pictures) == []
    again = train_on(pictures, "runs")
    assert again.returncode == 0 and "images      24" in again.stdout


@linux
def test_only_leftovers_of_our_own_are_removed(pictures, monkeypatch, trained):
    def deadly(fit_picture):
        calls = iter(range(100))

        def call(*args):
            if next(calls) == 20:
                while not cached(pictures):  # until the first picture has been written, in another thread
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
            return fit_picture(*args)

        return call

    with monkeypatch.context() as patch:
        instead(patch, "fit_picture", deadly)
        assert forked(lambda: train_on(pictures, "runs"))() == -signal.SIGKILL
    left = cached(pictures)
    assert len(left) == 1 and PART.fullmatch(left[0])
    os.utime(pictures / ".cache" / left[0], (0, 0))  # long ago
    foreign = [pictures / ".cache" / "train_8px_3ch_notes.txt", pictures.parent / "runs" / "mine" / "user.part"]
    foreign += [pictures.parent / ".digits.safetensors.part", pictures.parent / ".folder.part"]
    outdated = pictures / ".cache" / f"train_8px_3ch_{'0' * 16}_24.u8"
    for file in [*foreign, outdated]:
        file.write_text("keep me")
    assert train_on(pictures, "runs").returncode == 0
    assert in_process("convert.py", trained, pictures.parent / "digits.safetensors").returncode == 0
    assert in_process("convert.py", trained, pictures.parent / "folder").returncode == 0
    assert {file.read_text() for file in foreign} == {"keep me"} and not outdated.exists()
    assert not [file for file in pictures.parent.rglob("*.part") if file not in foreign]


# --- the preview and the checkpoint -----------------------------------------------------------------------------------


def test_a_decoder_that_seeks_too_far_is_no_error_of_the_machine(pictures, monkeypatch):
    def failing(open_picture):
        def call(file, *_):
            if file.name == "7.png":
                raise OSError(22, "Invalid argument")  # of a crafted JPEG 2000
            return open_picture(file)

        return call

    instead(monkeypatch, "open_picture", failing)
    ended = train_on(pictures, "runs")
    assert ended.returncode == 0 and "1 of 24 files are not pictures" in ended.stderr


PREVIEWS = {"sample_every": 2, "save_every": 6}


@pytest.fixture(scope="module")
def with_previews(tmp_path_factory):
    """The folder of an undisturbed run with three previews."""
    folder = tmp_path_factory.mktemp("previews")
    assert train(folder, settings=PREVIEWS).returncode == 0
    return folder


@pytest.mark.parametrize("step, signum", [(2, signal.SIGINT), (4, signal.SIGTERM)])
def test_a_preview_that_a_signal_cuts_is_drawn_when_the_run_goes_on(with_previews, tmp_path, monkeypatch, step, signum):
    preview, drawn = f"digits/preview_0000000{step}.png", iter(range(100))

    def interrupted(*args):
        if next(drawn) == step // 2 - 1:
            signal.raise_signal(signum)
        yield from sample(*args)

    sample = training.preview.sample_progressive
    with monkeypatch.context() as patch:
        patch.setattr(training.preview, "sample_progressive", interrupted)
        ended = train(tmp_path, settings=PREVIEWS)
    assert ended.returncode == 128 + signum and f"after step {step}, saved in" in ended.stderr
    assert not (tmp_path / preview).exists()
    assert resumes_to_the_same_end(tmp_path, PREVIEWS, state_hash(with_previews / "digits" / "digits.pt")) == step
    assert (tmp_path / preview).read_bytes() == (with_previews / preview).read_bytes()


def test_a_preview_that_is_drawn_first_does_not_count_as_training(with_previews, tmp_path, monkeypatch):
    shutil.copytree(with_previews, tmp_path, dirs_exist_ok=True)
    (tmp_path / "digits" / "preview_00000006.png").unlink()
    now = [0]
    monkeypatch.setattr(training.preview.Preview, "draw", lambda *_: now.append(now[-1] + 1000))
    monkeypatch.setattr("training.log.time.perf_counter", lambda: now.append(now[-1] + 1) or now[-1])
    assert train(tmp_path, settings=PREVIEWS | {"max_steps": 7}).returncode == 0
    assert now[-1] > 2000 and read_log(tmp_path / "digits" / "metrics.jsonl")[-1]["seconds"] < 1000


def test_a_preview_of_other_weights_is_replaced(tmp_path):
    assert train(tmp_path).returncode == 0
    folder, name = tmp_path / "digits", "preview_00000006.png"
    before = (folder / name).read_bytes()
    (folder / "digits.1.pt").replace(folder / "digits.pt")
    assert train(tmp_path, settings={"learning_rate": 0.1}).returncode == 0
    assert (folder / name).read_bytes() != before


@pytest.mark.parametrize("save_every", [1, 30])
def test_a_diverging_training_leaves_its_good_checkpoints(tmp_path, save_every):
    settings = {"save_every": 1, "model_channels": 16}
    assert train(tmp_path, settings=settings).returncode == 0
    good = {file.name: file.read_bytes() for file in (tmp_path / "digits").glob("*.pt")}
    ended = train(tmp_path, settings=settings | {"max_steps": 30, "learning_rate": 300, "save_every": save_every})
    refused(ended, 1, "its weights reach", "lower learning_rate", "resumes from the last checkpoint")
    assert {file.name: file.read_bytes() for file in (tmp_path / "digits").glob("*.pt")} == good
    again = train(tmp_path, settings=settings | {"max_steps": 8})
    assert again.returncode == 0 and "resuming from step 6" in again.stdout


def test_nothing_is_saved_after_a_bad_step(tmp_path, monkeypatch):
    losses, steps = training.preview.GaussianDiffusion.training_losses, iter(range(100))

    def wrong_in_the_third(*args):
        training_step = torch.is_grad_enabled() and not args[2].is_meta
        return losses(*args) * (torch.nan if training_step and next(steps) == 2 else 1)

    monkeypatch.setattr(training.preview.GaussianDiffusion, "training_losses", wrong_in_the_third)
    assert train(tmp_path, settings={"gradient_accumulation": 1}).returncode == 0
    kept = [torch.load(file, weights_only=True)["step"] for file in sorted((tmp_path / "digits").glob("*.pt"))]
    assert kept == [6]  # digits.pt, and no digits.1.pt of step 3
    lines = [json.loads(line) for line in (tmp_path / "digits" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["skipped"]] == [3]


def test_a_last_step_that_is_bad_changes_nothing_and_ends_the_run(tmp_path, monkeypatch):
    losses, steps = training.preview.GaussianDiffusion.training_losses, iter(range(100))

    def wrong_in_the_sixth(*args):
        training_step = torch.is_grad_enabled() and not args[2].is_meta
        return losses(*args) * (torch.nan if training_step and next(steps) == 5 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(training.preview.GaussianDiffusion, "training_losses", wrong_in_the_sixth)
        run = train(tmp_path, settings={"save_every": 5})
    assert run.returncode == 0 and "1 step(s) skipped" in run.stdout
    last, before = (torch.load(tmp_path / "digits" / name, weights_only=True) for name in ("digits.pt", "digits.1.pt"))
    assert (last["step"], before["step"]) == (6, 5)
    assert all(torch.equal(weight, before["model"][name]) for name, weight in last["model"].items())


def test_samples_that_are_not_finite_are_not_drawn(trained, tmp_path):
    content = torch.load(trained, weights_only=True)
    for weight in content["ema"].values():
        weight.mul_(1e30)
    torch.save(content, tmp_path / "exploded.pt")
    run = sampling(tmp_path / "exploded.pt", tmp_path / "results", "random_gen")()
    refused(run, 1, "not finite", "weights are unusable")
    assert "its training has diverged" in run.stdout and not list((tmp_path / "results").iterdir())
