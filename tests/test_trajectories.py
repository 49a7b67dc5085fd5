"""Training on trajectories: what is drawn, and that a run is resumed as any other."""

import shutil
from hashlib import sha256

import numpy as np
import pytest
import torch
from helpers.pictures import pixels
from helpers.scripts import (
    AT_ONCE,
    LABELLED,
    ROOT,
    call,
    in_process,
    refused,
    resumes_to_the_same_end,
    state_hash,
    train,
)

import test_solver
from datasets import Reading, load_labelled
from diffusion import SampleSpec, sample
from evaluation.real_pictures import labels_like
from runs.checkpoint import load_checkpoint, save_checkpoint
from runs.run import load_run
from training.trajectories import HeldOutTrajectories, TrajectoryBatches, draw_trajectories

SETTINGS = LABELLED | {"trajectories": 40, "teacher_info": "UniPC_3", "guidance": 2, "preview_info": "DDIM_1"}


@pytest.fixture(scope="module")
def teacher(labelled, tmp_path_factory):
    return shutil.copy(labelled, tmp_path_factory.mktemp("teacher") / "teacher.pt")


@pytest.fixture(scope="module")
def tuned(teacher, tmp_path_factory):
    """The folder of an undisturbed run."""
    save_dir = tmp_path_factory.mktemp("tuned")
    run = train(save_dir, settings=SETTINGS | {"init_from": teacher})
    assert run.returncode == 0, run.stderr
    return save_dir / "digits"


def drawn(folder):
    """(the file, the ends from noise and the ends that were drawn again): of the trajectories of a run."""
    (file,) = folder.glob("trajectories_*/*.u8")
    return file, np.fromfile(file, np.uint8).reshape(2, -1, 1, 8, 8)


def test_trajectories_end_where_the_teachers_sampler_does(teacher, tuned, monkeypatch):
    """With the teacher's guidance, and of each class as often as in the data: those that are learned and those held
    out, from noise and drawn again, in the states that a training sees, whichever process sees them.
    """
    monkeypatch.setattr("training.trajectories.AT_ONCE", AT_ONCE)
    run, recipe, count = load_run(teacher), load_run(tuned).recipe, 40 + 3 * AT_ONCE
    assert drawn(tuned)[1].shape[1] == count
    data = ("Digits", recipe["data_path"], "train", recipe["image_size"], recipe["image_channel"])
    data_labels = load_labelled(*data, recipe["class_names"], False, Reading.of(recipe))[1]
    learned, own, held_out = draw_trajectories(recipe, tuned, data_labels, run.device)
    labels = torch.tensor(labels_like(recipe, "train", recipe["class_names"], count))
    theirs = held_out[2]
    assert own.tolist() == [*labels[:40], *labels[:40]] and theirs.tolist() == [*labels[40:], *labels[40:]]

    as_one = recipe | {"batch_size": 80}
    batches = [TrajectoryBatches(learned, as_one, run.diffusion, run.device, rank, 2) for rank in (0, 1)]
    shares = [batch.drawn(0, next(batch.pixels(0, 1)), None, 0.0) for batch in batches]
    order = np.argsort(batches[0].indices(0))
    monkeypatch.setattr("training.held_out.PICTURES", 60)
    unseen = HeldOutTrajectories(recipe, held_out, None, None, run.device)
    seen = [torch.cat(parts)[order] for parts in zip(*shares, strict=True)], (unseen.x_start, unseen.t, unseen.noise)
    levels_of = [249] * 10 + [499] * 10 + [749] * 10
    assert seen[0][1].tolist() == [999] * 40 + levels_of + [249] * 10
    assert sorted(unseen.t.tolist()) == sorted(levels_of + [999] * 30)

    for (x_end, t, noise), of in zip(seen, (own, theirs), strict=True):
        x_t, label = run.diffusion.q_sample(x_end, t, noise), torch.tensor(of)
        for depth, spec in ((1000, "UniPC_3"), (750, "UniPC_3"), (500, "UniPC_2"), (250, "UniPC_1")):
            rows = t == depth - 1

            def guided(x, t, label=label[rows]):
                no_label = run.model(x, t, torch.full_like(label, 10))
                return no_label + 2 * (run.model(x, t, label) - no_label)

            ends = sample(run.diffusion, guided, x_t[rows], SampleSpec.parse(spec), depth=depth)
            # rounded; and sums in another order. From noise x_t has 1e-4 of the picture, which the sampler lacks
            assert (x_end[rows] - ends).abs().max() * 127.5 < 0.52, (spec, len(of))
        half = len(of) // 2
        fresh = run.diffusion.predict_noise(x_end[:half], x_t[half:], t[half:])  # what was added to the first end
        assert abs(fresh.std() - 1) < 0.1 and abs((fresh * noise[:half]).mean()) < 0.1  # of 1,920 values or more: 0.02


def test_a_trajectory_does_not_depend_on_their_number(teacher, tuned, tmp_path):
    few = {"init_from": teacher, "trajectories": 9, "max_steps": 1}
    assert train(tmp_path, settings=SETTINGS | few).returncode == 0
    fewer, more = (drawn(folder)[1].astype(int) for folder in (tmp_path / "digits", tuned))
    # sums in another order, next to a rounding boundary; and what is drawn again starts from such an end
    assert np.abs(fewer - more[:, : fewer.shape[1]]).max() <= 2


def test_the_tuned_network_says_what_it_learned_from_and_needs_no_guidance(teacher, tuned):
    recipe = load_run(tuned).recipe
    assert recipe["teacher_sha256"] == sha256(teacher.read_bytes()).hexdigest()
    assert (recipe["teacher_guidance"], recipe["guidance"], recipe["label_dropout"]) == (2, 1, 0)
    run = call(test_solver.main, "test_solver.py", "--model_path", tuned, "--test_mode", "random_gen", "--guidance", 2)
    refused(run, 2, "only knows guidance 1")
    assert len(pixels(tuned / "preview_00000006.png")) == 8 + 3 * (36 + 8)  # one, two and four calls


def test_a_run_that_was_cut_short_ends_on_the_same_hash(teacher, tuned, tmp_path):
    """It was killed while it drew its trajectories, then stopped at step 3."""
    settings, expected = SETTINGS | {"init_from": teacher}, state_hash(tuned / "digits.pt")
    place = tmp_path / "digits" / drawn(tuned)[0].relative_to(tuned)
    place.parent.mkdir(parents=True)
    place.write_bytes(drawn(tuned)[0].read_bytes()[:-1])
    assert train(tmp_path, settings=settings | {"max_steps": 3}).returncode == 0
    assert place.read_bytes() == drawn(tuned)[0].read_bytes()
    assert resumes_to_the_same_end(tmp_path, settings, expected) == 3


def test_a_run_that_began_with_other_trajectories_says_that_it_ends_on_other_bits(teacher, tuned, tmp_path):
    shutil.copytree(tuned, tmp_path / "digits")
    place = drawn(tmp_path / "digits")[0].parent
    place.rename(place.with_name("trajectories_0123456789abcdef"))
    run = train(tmp_path, settings=SETTINGS | {"init_from": teacher, "max_steps": 7})
    assert run.returncode == 0 and "trajectories_0123456789abcdef: a run that began with those ends on" in run.stdout


def test_a_dry_run_counts_what_a_training_sees(teacher, tmp_path):
    """40 trajectories with two ends each."""
    settings = SETTINGS | {"init_from": teacher, "max_steps": 1}
    plans = [train(tmp_path, *flags, settings=settings).stdout for flags in ((), ("--dry_run",))]
    lines = [[line for line in plan.splitlines() if line.startswith(("images ", "steps "))] for plan in plans]
    assert lines[0] == lines[1] and lines[0][0].split() == ["images", "80"]


def test_a_dry_run_does_not_need_the_data(tmp_path):
    base = ["--data_name", "Cifar10_laptop", "--data_path", tmp_path, "--save_dir", tmp_path, "--dry_run"]
    file, settings = ROOT / "checkpoints" / "cifar10.safetensors", ["trajectories=200"]
    planned = in_process("train_solver.py", *base, "--init_from", file, "--set", *settings)
    assert planned.returncode == 0 and "images      not found yet" in planned.stdout, planned.stderr


def test_a_run_with_a_critic_resumes_to_the_same_end_and_one_without_may_get_one(teacher, tuned, tmp_path):
    settings = SETTINGS | {"init_from": teacher, "critic_weight": 0.05}
    for place, steps in (("whole", 6), ("cut", 3)):
        assert train(tmp_path / place, settings=settings | {"max_steps": steps}).returncode == 0
    expected = state_hash(tmp_path / "whole" / "digits" / "digits.pt")
    assert expected != state_hash(tuned / "digits.pt")
    assert resumes_to_the_same_end(tmp_path / "cut", settings, expected) == 3
    shutil.copytree(tuned, tmp_path / "digits")
    run = train(tmp_path, settings=settings | {"max_steps": 9})
    assert run.returncode == 0, run.stderr
    assert "critic_weight: was 0.0, is 0.05" in run.stdout
    assert load_checkpoint(tmp_path / "digits" / "digits.pt")["critic"]


def test_a_run_from_before_there_were_features_ends_on_the_same_hash(teacher, tmp_path):
    """It learned from pixels alone, its recipe has no feature_weight, and its teacher is not needed any more."""
    settings = SETTINGS | {"init_from": teacher, "feature_weight": 0}
    assert train(tmp_path / "whole", settings=settings).returncode == 0
    assert train(tmp_path, settings=settings | {"max_steps": 3}).returncode == 0
    file = tmp_path / "digits" / "digits.pt"
    content = load_checkpoint(file)
    del content["recipe"]["feature_weight"]
    save_checkpoint(file, content, 1)
    refused(
        train(tmp_path, settings=SETTINGS | {"init_from": teacher}),
        1,
        "feature_weight: was 0.0, is 2.0",
        "use the old values",
    )
    moved = settings | {"init_from": tmp_path / "moved" / teacher.name}
    assert resumes_to_the_same_end(tmp_path, moved, state_hash(tmp_path / "whole" / "digits" / "digits.pt")) == 3


def test_another_or_a_missing_teacher_is_one_line(teacher, tuned, trained, tmp_path):
    shutil.copytree(tuned, tmp_path / "digits")
    longer = SETTINGS | {"max_steps": 7}
    (tmp_path / "other").mkdir()
    other = shutil.copy(trained, tmp_path / "other" / teacher.name)
    run = train(tmp_path, settings=longer | {"init_from": other})
    refused(run, 1, "teacher_sha256: was", "use the old values", "has changed since")
    drawn(tmp_path / "digits")[0].unlink()
    run = train(tmp_path, settings=longer | {"init_from": tmp_path / teacher.name})
    refused(run, 1, "teacher.pt does not exist")


@pytest.mark.parametrize(
    "settings, code, says",
    [
        ({"trajectories": "null", "critic_weight": 0.1}, 2, "critic_weight is for a training on trajectories"),
        ({}, 2, "trajectories needs init_from"),
        ({"objective": "pred_noise"}, 2, "objective=pred_noise predicts no picture"),
        ({"num_classes": "null"}, 2, "has other classes"),
        ({"timestep_num": 500}, 2, "has other betas"),
        ({"image_size": 16}, 2, "draws other sizes"),
        ({"num_res_blocks": 2}, 1, "its weights do not fit the network"),
        ({"network": "dit", "feature_weight": 2}, 2, "only a unet of our own has features"),
        ({"network": "dit", "critic_weight": 1}, 2, "only a unet of our own has features"),
        ({"trajectories": 4, "batch_size": 8}, 2, "fewer than batch_size=8"),
    ],
)
def test_what_cannot_learn_from_trajectories_is_refused(teacher, tmp_path, settings, code, says):
    init_from = {"init_from": teacher} if settings else {}
    refused(train(tmp_path, settings=SETTINGS | init_from | settings), code, says)
    assert not list(tmp_path.rglob("*.u8"))  # before hours of drawing
