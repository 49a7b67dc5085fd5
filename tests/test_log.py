"""metrics.jsonl, the held-out loss and the loss curve of a training."""

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from helpers.scripts import ROOT, train
from PIL import Image

from datasets import load_images
from diffusion import GaussianDiffusion
from files.errors import TrainingError
from runs.config import load_recipe
from training.held_out import HeldOut, held_out_pictures
from training.log import TrainingLog, quarter_means, quarter_sums, read_log, save_loss_curve
from training.processes import Processes

CPU = torch.device("cpu")


@pytest.fixture
def log(tmp_path):
    return log_in(tmp_path)


def log_in(folder, start=0, held_out=None):
    recipe = load_recipe(ROOT / "config.yaml", "Digits")
    return TrainingLog(folder, recipe, Processes(CPU), 4, start, 200, held_out)


def feed(log, steps, wrong=()):
    """Adds steps with random losses; those in `wrong` are not taken. Returns the losses and t of the others."""
    generator, kept = torch.Generator().manual_seed(0), []
    for step in range(steps):
        losses, t = torch.rand(16, generator=generator), torch.randint(1000, (16,), generator=generator)
        taken = torch.tensor(step not in wrong)
        log.add(losses if taken else losses * torch.nan, t, torch.tensor(2.0 if taken else torch.inf), taken)
        if taken:
            kept.append((losses, t))
    return (torch.cat(part) for part in zip(*kept, strict=True))


def test_a_line_has_the_means_since_the_previous_line(tmp_path, capsys):
    log = log_in(tmp_path, held_out=SimpleNamespace(loss=lambda: {"held_out_loss": 0.5}))
    losses, t = feed(log, 9, wrong={2, 5})
    line = log.write(9, 0.125, with_held_out=True)
    assert "step 9  epoch 3  loss" in capsys.readouterr().out
    assert line == read_log(log.file)[0]
    assert (line["step"], line["epoch"], line["learning_rate"], line["grad_norm"]) == (9, 3, 0.125, 2.0)
    assert line["skipped"] == 2 and line["held_out_loss"] == 0.5 and line["images_per_second"] > 0
    assert line["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)  # float32 sums in another order
    for i in range(4):
        mine = losses[(t >= 250 * i) & (t < 250 * i + 250)].mean().item()
        assert line["loss_by_quarter"][i] == pytest.approx(mine, rel=1e-5)
    feed(log, 1)
    assert log.write(10, 0.1)["skipped"] == 0


def test_quarters_without_a_loss_are_null(log):
    log.add(torch.ones(2), torch.tensor([0, 999]), torch.tensor(1.0), torch.tensor(True))
    assert log.write(1, 0.1)["loss_by_quarter"] == [1.0, None, None, 1.0]
    log.add(torch.ones(2), torch.tensor([0, 999]), torch.tensor(1.0), torch.tensor(False))
    line = log.write(2, 0.1)
    assert line["loss"] is None and line["grad_norm"] is None and line["skipped"] == 1
    assert [json.loads(text)["step"] for text in log.file.read_text().splitlines()] == [1, 2]
    assert quarter_means(quarter_sums(torch.ones(3), torch.arange(3), 3))[1] == [1.0, 1.0, 1.0, None]  # T below four
    infinite = quarter_sums(torch.tensor([1.0, torch.inf]), torch.tensor([0, 999]), 1000)
    assert quarter_means(infinite) == (None, [1.0, None, None, None])  # JSON has no such numbers


def test_twenty_bad_steps_in_a_row_end_the_run(log):
    """They are counted across lines; float16 may leave out 16, until its scale has fallen from 2^16 to 1."""
    feed(log, 30, {*range(18), *range(19, 30)})
    assert log.write(30, 0.1)["skipped"] == 29
    for _ in range(9):
        log.add(torch.ones(1), torch.zeros(1, dtype=torch.int64), torch.tensor(torch.nan), torch.tensor(False))
    with pytest.raises(TrainingError, match="20 steps in a row, up to step 39.*lower learning_rate"):
        log.write(39, 0.1)
    assert [line["step"] for line in read_log(log.file)] == [30]


def test_a_resumed_run_drops_the_lines_after_its_checkpoint(log, tmp_path):
    for step in (50, 100, 150):
        feed(log, 1)
        log.write(step, 0.1)
    with open(log.file, "a") as stream:
        stream.write('{"step": 200, "lo')  # cut off by a kill
    again = log_in(tmp_path, 100)
    assert [line["step"] for line in read_log(log.file)] == [50, 100]
    feed(again, 1)
    line = again.write(150, 0.1)
    assert [line["step"] for line in read_log(log.file)] == [50, 100, 150]
    assert line["seconds"] >= read_log(log.file)[1]["seconds"]


@pytest.mark.parametrize("text", [b"\xff\xfe{}", b"\0\0\0", b'{"step": 1, "loss": 0.5, "los', b"[]", b"7"])
def test_lines_that_were_cut_short_are_left_out(tmp_path, text):
    good = {"step": 2, "seconds": 1.5, "loss": 0.5, "loss_by_quarter": [0.5, None, 0.5, 0.5], "held_out_loss": 0.4}
    (tmp_path / "metrics.jsonl").write_bytes(text + b"\n" + json.dumps(good).encode() + b"\n")
    assert read_log(tmp_path / "metrics.jsonl") == [good]
    assert read_log(tmp_path / "no.jsonl") == []


def test_the_progress_bar_is_closed_after_the_block_and_after_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    log = log_in(tmp_path)
    with log.bar:
        feed(log, 3)
        assert not log.bar.disable and log.bar.n == 3
    assert log.bar.disable  # tqdm's mark of a closed bar
    log = log_in(tmp_path)
    with pytest.raises(ValueError), log.bar:
        raise ValueError
    assert log.bar.disable


def test_without_a_terminal_there_is_a_line_every_log_every_steps_instead_of_a_bar(log, capsys):
    assert log.bar.disable
    feed(log, 3)
    log.write(3, 0.1)
    assert re.fullmatch(r"step 3  epoch 1  loss 0\.[0-9]{4}  [0-9]+ images/s\n", capsys.readouterr().out)


def test_the_time_of_a_pause_is_not_training(log, monkeypatch):
    now = log.began
    monkeypatch.setattr("training.log.time.perf_counter", lambda: now)
    now += 100
    feed(log, 1)  # compiles
    feed(log, 1)
    now += 10
    line = log.write(2, 0.1)
    assert line["seconds"] == 110 and line["images_per_second"] == log.recipe["batch_size"] / 10
    now += 1000
    log.restart_clock()
    feed(log, 2)
    now += 10
    line = log.write(4, 0.1)
    assert line["seconds"] == 120 and line["images_per_second"] == 2 * log.recipe["batch_size"] / 10


def test_a_line_says_what_helps_when_other_programs_use_the_cores(log, monkeypatch, capsys):
    now, said = log.began, []
    monkeypatch.setattr("training.log.time.perf_counter", lambda: now)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for step, seconds in enumerate((100, 1, 1, 1.5, 2, 7, 1), 1):
        log.add(torch.ones(1), torch.zeros(1, dtype=torch.int64), torch.tensor(1.0), torch.tensor(True))
        now += seconds
        log.write(step, 0.1)
        said.append("OMP_NUM_THREADS=1" in capsys.readouterr().out)
    assert said == [False] * 5 + [True, False]


# --- the held-out loss ---

DIFFUSION = GaussianDiffusion(objective="pred_noise", loss_type="l2")


def held_out(network=None, **recipe):
    recipe = load_recipe(ROOT / "config.yaml", "Digits") | recipe
    images = load_images("Digits", "none", "train", 8, 1)
    pictures = held_out_pictures(recipe, images, None)
    return HeldOut(recipe, pictures, network, DIFFUSION.training_losses, torch.device("cpu")), images


def test_held_out_pictures_are_not_trained_on():
    ours, images = held_out()
    assert ours.name == "held_out_loss" and len(ours.x_start) == 256
    trained_on = {picture.tobytes() for picture in images}
    seen = [((x + 1) * 127.5).round().to(torch.uint8).numpy().tobytes() in trained_on for x in ours.x_start]
    assert not any(seen)
    assert held_out(split="all")[0].name == "fixed_noise_loss"  # nothing is held out there
    assert (torch.histc(ours.t.float(), 10, 0, 1000) >= 25).all()


def test_no_more_held_out_pictures_are_computed_at_once_than_one_process_trains_on():
    sizes, (ours, _) = [], held_out(batch_size=64, gradient_accumulation=8)
    ours.network, losses = lambda x, t: torch.zeros_like(x), ours.losses
    ours.losses = lambda network, x, *others: sizes.append(len(x)) or losses(network, x, *others)
    ours.loss()
    assert sizes == [8] * 32


def test_the_held_out_loss_repeats_exactly_and_is_0_for_a_perfect_network():
    def zero(x_t, t):
        return torch.zeros_like(x_t)

    ours = held_out(zero)[0]
    first = ours.loss()
    assert first == ours.loss() == held_out(zero)[0].loss()
    # the mean square of 256 * 64 normal numbers: its standard error is sqrt(2 / 16384) = 0.011
    assert first["held_out_loss"] == pytest.approx(1, abs=0.05) and len(first["held_out_loss_by_quarter"]) == 4

    def perfect(x_t, t):
        ac = DIFFUSION.alphas_cumprod[t].float()[:, None, None, None]
        x_start = torch.stack([ours.x_start[(ours.t == i).nonzero()[0, 0]] for i in t])
        return (x_t - ac.sqrt() * x_start) / (1 - ac).sqrt()

    # at t = 0, where there is little noise, float32 leaves an error of about 1e-6 / 0.006 of the noise
    assert held_out(perfect)[0].loss()["held_out_loss"] < 1e-6


def test_a_training_writes_its_metrics_and_its_curve(trained):
    lines = read_log(trained.parent / "metrics.jsonl")
    assert [line["step"] for line in lines] == [3, 6] and lines[0]["learning_rate"] == 0.001
    for line in lines:
        assert math.isfinite(line["loss"]) and math.isfinite(line["held_out_loss"]) and line["skipped"] == 0
        assert len(line["loss_by_quarter"]) == len(line["held_out_loss_by_quarter"]) == 4
    assert Image.open(trained.parent / "loss.png").size == (840, 480)


def test_the_curve_is_drawn_even_if_losses_are_missing(tmp_path):
    line = {"step": 1, "seconds": 1, "loss": 0.5, "loss_by_quarter": [0.5, None, 0.25, None], "fixed_noise_loss": 0.5}
    save_loss_curve([line, line | {"step": 2, "loss": None}], tmp_path / "loss.png")
    assert Image.open(tmp_path / "loss.png").size == (840, 480)


@pytest.mark.slow
def test_gradient_accumulation_gives_the_same_losses_and_the_learning_rate_follows_its_schedule(tmp_path):
    settings = {"warmup_steps": 2, "lr_schedule": "cosine", "log_every": 1, "precision": "fp32"}
    lines = []
    for parts in (1, 4):
        run = train(tmp_path / str(parts), settings=settings | {"gradient_accumulation": parts})
        assert run.returncode == 0, run.stderr
        lines.append(read_log(tmp_path / str(parts) / "digits" / "metrics.jsonl"))
    cosine = [0.0005 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    assert [line["learning_rate"] for line in lines[1]] == pytest.approx([0.0005, 0.001, *cosine])
    for whole, in_parts in zip(*lines, strict=True):  # sums in another order
        assert in_parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
        assert in_parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)
