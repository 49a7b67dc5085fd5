"""Whether a network copies: the nearest training pictures."""

import re

import pytest
import torch

from datasets import load_images, normalize
from evaluation.features import extractor_for
from evaluation.neighbours import closeness, nearest
from evaluation.numbers import Evaluation
from evaluation.real_pictures import RealPictures, real_pictures
from runs.run import Run


def test_nearest_neighbours_are_found_across_chunks():
    generator = torch.Generator().manual_seed(0)
    training = torch.randint(256, (12_000, 1, 4, 4), generator=generator, dtype=torch.uint8)  # several chunks
    samples = training[[3, 11_999, 6000]].clone()
    samples[1, 0, 0, 0] ^= 8
    own = torch.tensor([3, 6000])
    apart, number = nearest(training[own], training, own)
    for i in range(2):  # its own picture left out
        others = torch.cat([training[: own[i]], training[own[i] + 1 :]])
        assert apart[i] == pytest.approx(nearest(training[own[i]][None], others)[0].item()) and number[i] != own[i]
    apart, number = nearest(samples, training)
    assert number.tolist() == [3, 11_999, 6000]
    assert apart.tolist() == pytest.approx([0, 8 / 255 / 4, 0], abs=1e-3)  # cdist's float32 at 0
    features, _ = nearest(torch.tensor([[3.0, 4]]), torch.zeros(1, 2))
    assert features.tolist() == pytest.approx([5 / 2**0.5])  # as they are, where pixels are divided by 255


def test_neighbours_and_closeness_of_features_on_a_line():
    training = torch.tensor([[0.0, 0], [300, 400], [600, 800]])
    apart, number = nearest(torch.tensor([[297.0, 396], [606, 808]]), training)
    assert number.tolist() == [1, 2] and apart.tolist() == pytest.approx([5 / 2**0.5, 10 / 2**0.5], rel=1e-3)
    found = closeness(torch.tensor([0.0, 0.5, 1.5, 50]), torch.arange(101.0), 3)  # 1 % of 0 to 100 are below 1
    assert found == {"n": 3, "mirrored": False, "samples": 13, "real": 50, "closer_than_99_percent_of_real": 0.5}


@pytest.mark.parametrize("mirrored", [True, False])
def test_a_mirrored_copy_is_a_copy_if_the_training_mirrored(mirrored):
    real = real_pictures("Digits", "none", "train", "train", 8, 1)
    judge = Evaluation(real, extractor_for("Digits", 1, torch.device("cpu")), 297, mirrored)
    report, apart, number = judge(real.training[:100].flip(-1))
    for space in ("nearest", "nearest_in_features"):
        assert (report[space]["samples"] == pytest.approx(0, abs=1e-3)) == mirrored
        assert (report[space]["closer_than_99_percent_of_real"] == 1) == mirrored
    assert (number.tolist() == list(range(100))) == mirrored
    honest, _, _ = judge(real.held_out)  # real pictures are compared in the same way
    assert honest["nearest"]["closer_than_99_percent_of_real"] == pytest.approx(0.01, abs=0.003)  # 3 of 297


def test_a_picture_of_a_folder_is_not_its_own_neighbour():
    """There the real pictures to compare with are the training pictures themselves."""
    digits = real_pictures("Digits", "none", "train", "train", 8, 1).training
    judge = Evaluation(
        RealPictures({"all": digits}, "all", "all"), extractor_for("Digits", 1, torch.device("cpu")), 100
    )
    assert judge.real_apart.median() > 0.05 and judge.real_apart_in_features.median() > 0.05


@pytest.mark.parametrize("flips", ["true", "false"])
def test_evaluate_looks_for_mirror_images_after_a_training_with_flips(
    in_process, trained, tmp_path, monkeypatch, flips
):
    """A network that draws mirrored training pictures has copied them if it was trained with them."""
    content = torch.load(trained, weights_only=True)
    content["recipe"]["horizontal_flip"] = flips == "true"
    torch.save(content, tmp_path / "flips.pt")
    copies = normalize(torch.from_numpy(load_images("Digits", "none", "train", 8, 1)[:50])).flip(-1)
    monkeypatch.setattr(Run, "batches", lambda self, *args, **keys: [copies])
    args = ("--test_mode", "evaluate", "--sample_num", 50, "--sample_info", "DDIM_1_0p0", "--save_dir", tmp_path)
    run = in_process("test_solver.py", "--model_path", tmp_path / "flips.pt", *args)
    assert run.returncode == 0, run.stderr
    share = re.search(r"^nearest of .*?([\d.]+)% of the samples", run.stdout, re.M)[1]
    assert (float(share) == 100) == (flips == "true") and ("mirrored" in run.stdout) == (flips == "true")
