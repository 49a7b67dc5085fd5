"""Training on trajectories: the map from noise to picture is learned, and the run is resumed as any other."""

import shutil
from hashlib import sha256

import numpy as np
import pytest
import torch
from helpers.pictures import pixels
from helpers.samplers import T, flow, perfect, randn, rms_error, seeded, target_of
from helpers.scripts import HELD_OUT, LABELLED, call, refused, resumes_to_the_same_end, state_hash, train
from torch import nn

import test_solver
from diffusion import GaussianDiffusion, SampleSpec, sample
from diffusion.few_calls import LINEAR_FROM, feature_distance, first_or_any, trajectory_losses
from evaluation.real_pictures import labels_like
from runs.checkpoint import load_checkpoint, save_checkpoint
from runs.run import load_run
from training.trajectories import starts_of

SETTINGS = LABELLED | {"trajectories": 40, "teacher_info": "UniPC_3", "guidance": 2, "preview_info": "DDIM_1"}


# --- the science ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["pred_x0", "pred_v", "pred_flow"])
def test_the_loss_is_that_of_the_predicted_x_start(objective):
    """A network whose x_start is off by 0 in one picture, by ±0.3 in the other, whatever it predicts."""
    d, t = GaussianDiffusion(T, objective=objective), torch.tensor([999, 400])
    x_end, noise = randn(2, 1, 4, 4, seed=1).clamp(-1, 1), randn(2, 1, 4, 4, seed=2)
    off = 0.3 * randn(2, 1, 4, 4, seed=3).sign() * torch.tensor([0, 1]).view(2, 1, 1, 1)
    ac = d.alphas_cumprod[t].view(-1, 1, 1, 1)

    def model(x, t):
        x_start = x_end + off
        return target_of(objective, x_start, (x - ac.sqrt() * x_start) / (1 - ac).sqrt(), ac)

    losses = trajectory_losses(d, model, x_end, t, noise)
    expected = [0.0, (0.09 + LINEAR_FROM**2) ** 0.5 - LINEAR_FROM]
    # float64, 1e-16, over a divisor of at least 5e-5 at t = 999 and c = 5e-4
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


def test_the_distance_in_features_is_that_of_directions():
    """Of two maps: one has vectors at angles of 0, 60, 90 and 180 degrees, 2 - 2 cos apart; the other is the same."""
    angles = torch.tensor([0, 60, 90, 180]).deg2rad().view(1, 1, 2, 2)
    x, y = torch.cat([angles.cos(), angles.sin()], 1), 7 * torch.tensor([1.0, 0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    x.requires_grad_()

    def features(pictures):
        return [pictures, pictures[:, :1].abs() + 1]

    (distance,) = feature_distance(features(x), features(y))
    torch.testing.assert_close(distance, torch.tensor((0 + 1 + 2 + 4) / 4 / 2))
    distance.backward()
    assert x.grad.abs().sum() > 0
    given = GaussianDiffusion(T, objective="pred_x0"), lambda x, t: y, x.detach(), torch.tensor([5]), y
    losses = trajectory_losses(*given), trajectory_losses(*given, features, 2.0)
    torch.testing.assert_close(losses[1] - losses[0], 2 * distance.detach()[None])


def test_each_second_timestep_is_the_first_of_the_sampler():
    assert first_or_any(torch.tensor([5, 6, 7, 8, 9]), T).tolist() == [999, 6, 999, 8, 999]


class Small(nn.Module):
    """Predicts x_start of points in the plane."""

    def __init__(self):
        super().__init__()
        first, middle, last = nn.Linear(4, 64), nn.Linear(64, 64), nn.Linear(64, 2)
        self.layers = nn.Sequential(first, nn.SiLU(), middle, nn.SiLU(), last).double()

    def forward(self, x, t):
        angle = (t / T * torch.pi / 2)[:, None].double()
        return self.layers(torch.cat([x.flatten(1), angle.cos(), angle.sin()], 1)).view_as(x)


def test_a_network_learns_the_map_from_noise_to_data():
    """A mixture of Gaussians: its perfect network draws the trajectories. What a small network learns from them is
    compared with the flow, which is integrated on its own, from noise that was not in them.
    """
    torch.manual_seed(0)
    d, small = GaussianDiffusion(T, objective="pred_x0", clip_denoised=False), Small()
    exact, x_T, unseen = GaussianDiffusion(T, clip_denoised=False), randn(4000, 2, 1, 1, seed=1), randn(300, 2, seed=2)
    teacher = perfect(exact, "mixture")
    x_end = sample(exact, teacher, x_T, SampleSpec.parse("UniPC_10"))
    truth = flow("mixture", unseen, d.alpha_bar(T - 1))

    def errors(diffusion, model):
        specs = map(SampleSpec.parse, ("DDIM_1", "DDIM_2"))
        return [rms_error(sample(diffusion, model, unseen[..., None, None], s).view(-1, 2), truth) for s in specs]

    optimizer, generator, found = torch.optim.Adam(small.parameters(), 5e-3), seeded(), [errors(d, small)]
    for step in range(1, 501):
        rows = torch.randint(len(x_T), (256,), generator=generator)
        t = first_or_any(d.draw_timesteps(len(rows), generator), T)
        optimizer.zero_grad()
        trajectory_losses(d, small, x_end[rows], t, x_T[rows]).mean().backward()
        optimizer.step()
        if step in (50, 500):
            found.append(errors(d, small))
    for before, early, late, plain in zip(*found, errors(exact, teacher), strict=True):
        assert before > 2 * early > 4 * late  # measured: 0.57, 0.14 to 0.18 and 0.05
        assert late < plain / 4  # in as many calls: 0.56 and 0.32; ten of UniPC, from which it learned, have 0.04


# --- the training -----------------------------------------------------------------------------------------------------


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
    """(the file, its pictures): of the trajectories of a run."""
    (file,) = folder.glob("trajectories_*/*.u8")
    return file, np.fromfile(file, np.uint8).reshape(-1, 1, 8, 8)


def test_trajectories_end_where_the_teachers_sampler_does(teacher, tuned):
    """With the teacher's guidance, and of each class as often as in the data."""
    ends, run, recipe = drawn(tuned)[1], load_run(teacher), load_run(tuned).recipe
    assert len(ends) == 40 + HELD_OUT
    labels = torch.tensor(labels_like(recipe, "train", recipe["class_names"], 20))
    x_T = starts_of(recipe, range(20), run.device)
    nothing = torch.full_like(labels, 10)

    def guided(x, t):
        no_label = run.model(x, t, nothing)
        return no_label + 2 * (run.model(x, t, labels) - no_label)

    theirs = (sample(run.diffusion, guided, x_T, SampleSpec.parse("UniPC_3")) + 1) * 127.5
    assert (torch.from_numpy(ends[:20]).float() - theirs).abs().max() < 0.51  # rounded; and sums in another order


def test_a_trajectory_does_not_depend_on_their_number(teacher, tuned, tmp_path):
    few = {"init_from": teacher, "trajectories": 9, "max_steps": 1}
    assert train(tmp_path, settings=SETTINGS | few).returncode == 0
    fewer, more = (drawn(folder)[1].astype(int) for folder in (tmp_path / "digits", tuned))
    assert np.abs(fewer - more[: len(fewer)]).max() <= 1  # sums in another order, next to a rounding boundary


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
        ({}, 2, "trajectories needs init_from"),
        ({"objective": "pred_noise"}, 2, "objective=pred_noise predicts no picture"),
        ({"num_classes": "null"}, 2, "has other classes"),
        ({"network": "dit", "feature_weight": 2}, 2, "only a unet of our own has features"),
        ({"network": "dit", "critic_weight": 1}, 2, "only a unet of our own has features"),
        ({"trajectories": 4, "batch_size": 8}, 2, "fewer than batch_size=8"),
    ],
)
def test_what_cannot_learn_from_trajectories_is_refused(teacher, tmp_path, settings, code, says):
    init_from = {"init_from": teacher} if settings else {}
    refused(train(tmp_path, settings=SETTINGS | init_from | settings), code, says)
