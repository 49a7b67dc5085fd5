"""metrics.jsonl, the held-out loss and the curve: the numbers a training tells of itself."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from solvers import ROOT, train

from datasets import load_images
from diffusion import GaussianDiffusion
from utils.config import load_recipe
from utils.errors import TrainingError
from utils.held_out import HeldOut
from utils.metrics import Metrics, quarter_means, quarter_sums, read_metrics, save_loss_curve
from utils.processes import Processes

CPU = torch.device("cpu")


@pytest.fixture
def metrics(tmp_path):
    return Metrics(tmp_path, load_recipe(ROOT / "config.yaml", "Digits"), Processes(CPU), 0)


def feed(metrics, steps, wrong=()):
    """Steps of random losses; those numbered in `wrong` are not taken. Returns the losses and t that count."""
    generator, kept = torch.Generator().manual_seed(0), []
    for step in range(steps):
        losses, t = torch.rand(16, generator=generator), torch.randint(1000, (16,), generator=generator)
        taken = torch.tensor(step not in wrong)
        metrics.add(losses if taken else losses * torch.nan, t, torch.tensor(2.0 if taken else torch.inf), taken)
        if taken:
            kept.append((losses, t))
    return (torch.cat(part) for part in zip(*kept, strict=True))


def test_a_line_holds_the_means_since_the_last(metrics):
    losses, t = feed(metrics, 9, wrong={2, 5})
    line = metrics.log(9, 4, 0.125, lambda: {"held_out_loss": 0.5})
    assert line == read_metrics(metrics.file)[0]
    assert (line["step"], line["epoch"], line["learning_rate"], line["grad_norm"]) == (9, 3, 0.125, 2.0)
    assert line["skipped"] == 2 and line["held_out_loss"] == 0.5 and line["images_per_second"] > 0
    assert line["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)  # float32 sums in another order
    for i in range(4):
        mine = losses[(t >= 250 * i) & (t < 250 * i + 250)].mean().item()
        assert line["loss_by_quarter"][i] == pytest.approx(mine, rel=1e-5)
    feed(metrics, 1)
    assert metrics.log(10, 4, 0.1, dict)["skipped"] == 0


def test_quarters_without_a_loss_are_null(metrics):
    metrics.add(torch.ones(2), torch.tensor([0, 999]), torch.tensor(1.0), torch.tensor(True))
    assert metrics.log(1, 4, 0.1, dict)["loss_by_quarter"] == [1.0, None, None, 1.0]
    metrics.add(torch.ones(2), torch.tensor([0, 999]), torch.tensor(1.0), torch.tensor(False))
    line = metrics.log(2, 4, 0.1, dict)
    assert line["loss"] is None and line["grad_norm"] is None and line["skipped"] == 1
    assert [json.loads(text)["step"] for text in metrics.file.read_text().splitlines()] == [1, 2]
    assert quarter_means(quarter_sums(torch.ones(3), torch.arange(3), 3))[1] == [1.0, 1.0, 1.0, None]  # T below four


@pytest.mark.parametrize("wrong, ends", [({1, 2}, False), ({0, 2, 4}, False), ({1, 2, 3}, True), ({5, 6, 7, 8}, True)])
def test_three_in_a_row_end_the_run(metrics, wrong, ends):
    feed(metrics, 9, wrong)
    if ends:
        with pytest.raises(TrainingError, match=f"{len(wrong)} steps in a row, up to step 9.*lower learning_rate"):
            metrics.log(9, 4, 0.1, dict)
        assert read_metrics(metrics.file) == []
    else:
        assert metrics.log(9, 4, 0.1, dict)["skipped"] == len(wrong)


def test_a_row_across_two_lines_counts(metrics):
    feed(metrics, 9, {7, 8})
    metrics.log(9, 4, 0.1, dict)
    metrics.add(torch.ones(1), torch.zeros(1, dtype=torch.int64), torch.tensor(torch.nan), torch.tensor(False))
    with pytest.raises(TrainingError, match="3 steps in a row, up to step 10"):
        metrics.log(10, 4, 0.1, dict)


def test_a_run_that_goes_on_drops_what_came_after_its_checkpoint(metrics, tmp_path):
    for step in (50, 100, 150):
        feed(metrics, 1)
        metrics.log(step, 4, 0.1, dict)
    with open(metrics.file, "a") as stream:
        stream.write('{"step": null, "seconds": 1, "loss_by_quarter": []}\n{"step": 200, "lo')  # cut off by a kill
    again = Metrics(tmp_path, metrics.recipe, Processes(CPU), 100)
    assert [line["step"] for line in read_metrics(metrics.file)] == [50, 100]
    feed(again, 1)
    line = again.log(150, 4, 0.1, dict)
    assert [line["step"] for line in read_metrics(metrics.file)] == [50, 100, 150]
    assert line["seconds"] >= read_metrics(metrics.file)[1]["seconds"]


def held_out(**recipe):
    recipe = load_recipe(ROOT / "config.yaml", "Digits") | recipe
    images = load_images("Digits", "none", "train", 8, 1)
    return HeldOut(recipe, images, CPU), images


def test_held_out_pictures_are_not_trained_on():
    ours, images = held_out()
    assert ours.name == "held_out_loss" and len(ours.x_start) == 256
    trained_on = {picture.tobytes() for picture in images}
    seen = [((x + 1) * 127.5).round().to(torch.uint8).numpy().tobytes() in trained_on for x in ours.x_start]
    assert not any(seen)
    assert held_out(split="all")[0].name == "fixed_noise_loss"  # nothing is held out there
    assert (torch.histc(ours.t.float(), 10, 0, 1000) >= 25).all()


def test_the_held_out_loss_is_the_same_each_time_and_knows_a_perfect_network():
    ours, diffusion = held_out()[0], GaussianDiffusion(objective="pred_noise", loss_type="l2")
    running, stopping = SimpleNamespace(signum=0), SimpleNamespace(signum=15)

    def zero(x_t, t):
        return torch.zeros_like(x_t)

    first = ours.loss(zero, diffusion, running)
    assert first == ours.loss(zero, diffusion, running) == held_out()[0].loss(zero, diffusion, running)
    # the mean square of 256 * 64 normal numbers, whose standard error is sqrt(2 / 16384) = 0.011
    assert first["held_out_loss"] == pytest.approx(1, abs=0.05) and len(first["held_out_loss_by_quarter"]) == 4

    def perfect(x_t, t):
        ac = diffusion.alphas_cumprod[t].float()[:, None, None, None]
        x_start = torch.stack([ours.x_start[(ours.t == i).nonzero()[0, 0]] for i in t])
        return (x_t - ac.sqrt() * x_start) / (1 - ac).sqrt()

    # at t = 0, where little noise is, float32 leaves about 1e-6 / 0.006 of the noise undecided
    assert ours.loss(perfect, diffusion, running)["held_out_loss"] < 1e-6
    assert ours.loss(zero, diffusion, stopping) == {}


def test_a_training_leaves_its_metrics_and_its_curve(trained):
    lines = read_metrics(trained.parent / "metrics.jsonl")
    assert [line["step"] for line in lines] == [3, 6] and lines[0]["learning_rate"] == 0.001
    for line in lines:
        assert math.isfinite(line["loss"]) and math.isfinite(line["held_out_loss"]) and line["skipped"] == 0
        assert len(line["loss_by_quarter"]) == len(line["held_out_loss_by_quarter"]) == 4
    assert Image.open(trained.parent / "loss.png").size == (840, 480)


def test_the_curve_is_drawn_of_whatever_there_is(tmp_path):
    line = {"step": 1, "seconds": 1, "loss": 0.5, "loss_by_quarter": [0.5, None, 0.25, None], "fixed_noise_loss": 0.5}
    save_loss_curve([line, line | {"step": 2, "loss": None}], tmp_path / "loss.png")
    assert Image.open(tmp_path / "loss.png").size == (840, 480)


def test_the_learning_rate_and_parts_of_a_batch(tmp_path):
    settings = {"warmup_steps": 2, "lr_schedule": "cosine", "log_every": 1, "precision": "fp32"}
    lines = []
    for parts in (1, 4):
        run = train(tmp_path / str(parts), settings=settings | {"gradient_accumulation": parts})
        assert run.returncode == 0, run.stderr
        lines.append(read_metrics(tmp_path / str(parts) / "digits" / "metrics.jsonl"))
    cosine = [0.0005 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    assert [line["learning_rate"] for line in lines[1]] == pytest.approx([0.0005, 0.001, *cosine])
    for whole, in_parts in zip(*lines, strict=True):  # sums in another order
        assert in_parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
        assert in_parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)
