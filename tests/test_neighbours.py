"""Whether a network copies: the nearest training pictures."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datasets import load_images, normalize
from evaluation.features import extractor_for
from evaluation.neighbours import closeness, nearest, shapes
from evaluation.numbers import Evaluation
from evaluation.parts import in_parts
from evaluation.real_pictures import RealPictures, real_pictures
from runs.run import Run

DIGITS = {"dataset": "Digits", "data_path": "none", "image_size": 8, "image_channel": 1}


def by_differences(pictures, training):
    """The sorted distances to all training pictures, and their numbers, in float64 and without matrix products."""
    x, y = (values.flatten(1).double().numpy() / 255 for values in (pictures, training))
    apart = np.array([np.sqrt(((y - row) ** 2).mean(1)) for row in x])
    return np.sort(apart, 1), apart.argsort(1, kind="stable")


def test_nearest_neighbours_are_found_across_parts(monkeypatch):
    monkeypatch.setattr("evaluation.neighbours.in_parts", lambda rows, *_: in_parts(rows, most=50))
    generator = torch.Generator().manual_seed(0)
    training = torch.randint(256, (320, 1, 4, 4), generator=generator, dtype=torch.uint8)
    pictures = torch.randint(256, (120, 1, 4, 4), generator=generator, dtype=torch.uint8)
    pictures[:2] = training[[3, 319]]
    pictures[1, 0, 0, 0] ^= 8
    apart, number, stands_out = nearest(pictures, training)
    expected, which = by_differences(pictures, training)
    assert apart[0] == 0 and stands_out[0] == 0 and number[:2].tolist() == [3, 319]
    assert apart.tolist() == pytest.approx(expected[:, 0], rel=1e-12) and number.tolist() == which[:, 0].tolist()
    assert stands_out.tolist() == pytest.approx(expected[:, 0] / expected[:, 1:4].mean(1), rel=1e-12)  # float64
    own = torch.arange(320)[::3]
    apart, number, _ = nearest(training[own], training, own)  # each with its own picture left out
    expected, which = by_differences(training[own], training)
    assert apart.tolist() == pytest.approx(expected[:, 1], rel=1e-12) and number.tolist() == which[:, 1].tolist()
    features, _, _ = nearest(torch.tensor([[3.0, 4]]), torch.zeros(1, 2))
    assert features.tolist() == pytest.approx([5 / 2**0.5])  # as they are, where pixels are divided by 255


def test_near_ties_are_told_apart_and_the_first_of_equal_pictures_counts():
    """On white, where float32 products lose what is far below a grey level."""
    training = torch.full((30, 3, 32, 32), 255, dtype=torch.uint8)
    training[:20] = torch.arange(20).view(20, 1, 1, 1).to(torch.uint8)
    for i, level in enumerate((9, 8, 7, 7, 6, 6, 6, 9, 10, 11)):
        training[20 + i, 0, 0, 0] -= level
    apart, number, _ = nearest(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8), training)
    assert number.tolist() == [24] and apart.item() == pytest.approx(6 / 255 / 3072**0.5, rel=1e-12)


def test_neighbours_and_closeness_of_features_on_a_line():
    training = torch.tensor([[0.0, 0], [300, 400], [600, 800]])
    apart, number, stands_out = nearest(torch.tensor([[297.0, 396], [606, 808]]), training)
    assert number.tolist() == [1, 2] and apart.tolist() == pytest.approx([5 / 2**0.5, 10 / 2**0.5], rel=1e-12)
    assert stands_out.tolist() == pytest.approx([5 / 500, 10 / 760], rel=1e-12)  # others at 495 and 505, 510 and 1010
    near, real = torch.tensor([0.0, 0.5, 1.5, 50]), torch.arange(101.0)  # 1 % of 0 to 100 are below 1
    found = closeness((near, near / 100), (real, real / 100), 3)
    assert found == {"n": 3, "mirrored": False, "samples": 13, "real": 50, "copies": 0.5}


def fields(count, seed):
    """Smooth random pictures of many contrasts and brightnesses, as photographs are."""
    generator, frequency = torch.Generator().manual_seed(seed), torch.fft.fftfreq(8).square()
    power = (frequency[:, None] + frequency).clamp(min=1 / 64) ** -0.75
    power[0, 0] = 0
    x = torch.fft.ifft2(torch.fft.fft2(torch.randn(count, 1, 8, 8, generator=generator)) * power).real
    contrast, level = torch.randn(2, count, 1, 1, 1, generator=generator)
    return (128 + 40 * ((contrast / 2).exp() * x / x.std() + level / 2)).round().clamp(0, 255).byte()


def test_pale_and_blurred_pictures_are_no_copies_but_pale_and_noisy_copies_are():
    """The plain distance calls half of the pictures with a quarter of their contrast closer than 99 % of others."""
    training, real, others = fields(2000, 0), fields(500, 1), fields(500, 2)
    noise = 5 * torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    blurred = F.interpolate(F.avg_pool2d(others.float(), 2), scale_factor=2, mode="bilinear")

    def with_contrast(pictures, share):
        return (128 + share * (pictures.float() - 128)).round().byte()

    def near(pictures):
        return nearest(pictures, training)[0], nearest(pictures, training, of=shapes)[2]

    def copies(pictures):
        return closeness(near(pictures), near(real), 2000)["copies"]

    pale = with_contrast(others, 0.25)
    assert (near(pale)[0] < near(real)[0].quantile(0.01)).double().mean() > 0.3
    for pictures in (others, blurred.round().byte(), with_contrast(others, 0.5), pale):
        assert copies(pictures) < 0.03  # 1 % of 500, and of those that set the limit: 0 to 3 %
    assert copies(torch.full_like(others, 120)) == 0
    for pictures in (training[:200], (training[:200] + noise).clamp(0, 255).byte(), with_contrast(training[:200], 0.5)):
        assert copies(pictures) > 0.99


@pytest.mark.parametrize("mirrored", [True, False])
def test_a_mirrored_copy_is_a_copy_if_the_training_mirrored(mirrored):
    real = real_pictures(DIGITS, "train", "train")
    judge = Evaluation(real, extractor_for("Digits", 1, torch.device("cpu")), 297, mirrored)
    report, apart, number = judge(real.training[:100].flip(-1))
    for space in ("nearest", "nearest_in_features"):
        apart = report[space]["samples"]  # features of another batch differ by rounding in float32
        assert (apart < 1e-5) == mirrored and (apart == 0 or not mirrored or space == "nearest_in_features")
        assert (report[space]["copies"] == 1) == mirrored
    assert (number.tolist() == list(range(100))) == mirrored
    honest, _, _ = judge(real.held_out)  # real pictures are compared in the same way
    assert honest["nearest"]["copies"] == pytest.approx(0.01, abs=0.003)  # 3 of 297


def test_a_picture_of_a_folder_is_not_its_own_neighbour():
    """There the real pictures to compare with are the training pictures themselves."""
    digits = real_pictures(DIGITS, "train", "train").training
    judge = Evaluation(RealPictures(digits, digits), extractor_for("Digits", 1, torch.device("cpu")), 100)
    for apart, stands_out in judge.real_near.values():
        assert apart.median() > 0.05 and stands_out.median() > 0.5


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
