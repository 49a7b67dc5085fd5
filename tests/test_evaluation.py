"""Evaluation: features, classes, brightness, copies, and the report of it all."""

import json
import math
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from datasets import DataError, load_images
from evaluation.features import channels_of, classifier_file, extractor_for, shipped_classifier
from evaluation.numbers import Evaluation, class_shares, look
from evaluation.real_pictures import real_pictures

DIGITS = {"dataset": "Digits", "data_path": "none", "image_size": 8, "image_channel": 1}


@cache
def digits(split):
    return torch.from_numpy(np.array(load_images("Digits", "none", split, 8, 1)))


@pytest.fixture(scope="module")
def extractor():
    return extractor_for("Digits", 1, torch.device("cpu"))


def test_the_shipped_classifiers_classify_their_digits(extractor):
    file = classifier_file("Digits")
    assert file.stat().st_size < 1e6 and extractor.name == "classifier_digits" and len(extractor.sha256) == 64
    right = extractor.classes(extractor.features(digits("test"))) == torch.from_numpy(load_digits().target[1500:])
    assert right.double().mean() > 0.9
    enlarged = digits("test").repeat_interleave(2, 2).repeat_interleave(2, 3)  # another size than its own
    same = extractor.classes(extractor.features(enlarged)) == extractor.classes(extractor.features(digits("test")))
    assert same.double().mean() > 0.95
    for dataset in ("Mnist", "Fashion_Mnist"):
        features = shipped_classifier(classifier_file(dataset), torch.device("cpu")).features
        assert features(torch.zeros(1, 1, 28, 28, dtype=torch.uint8)).shape == (1, 64)


def test_colour_pictures_are_measured_by_their_own_classifier_if_it_is_shipped(monkeypatch, capsys):
    file = classifier_file("Cifar10")
    assert file.stat().st_size < 1.5e6 and channels_of(file) == 3
    extractor = extractor_for("Cifar10", 3, torch.device("cpu"))
    pictures = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    features = extractor.features(pictures)
    assert extractor.name == "classifier_cifar10" and features.shape == (2, 64) and features.dtype == torch.float32
    assert extractor.features(pictures.flip(0)).flip(0).equal(features) and extractor.classes(features).max() < 10
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    assert extractor_for("Cifar10", 1, torch.device("cpu")) is None and "no distances" in capsys.readouterr().out
    others = extractor_for("Fashion_Mnist", 3, torch.device("cpu"))  # its classifier is one of grey pictures
    assert (others.name, others.sha256) == (extractor.name, extractor.sha256) and others.classes is None


def test_shares_and_evenness_of_classes():
    even = class_shares(torch.arange(50) % 10)
    assert even["shares"] == pytest.approx([0.1] * 10) and even["evenness"] == pytest.approx(1)
    assert class_shares(torch.zeros(5, dtype=torch.int64))["evenness"] == 0
    assert class_shares(torch.tensor([0, 1]))["evenness"] == pytest.approx(math.log(2) / math.log(10))


def test_brightness_and_fine_detail_of_simple_patterns():
    flat = torch.full((2, 3, 8, 8), 51, dtype=torch.uint8)
    flat[:, :, :, ::2] = 255  # lines of one pixel
    flat[:, 0] = 0  # no red
    assert look(flat)["by_channel"] == pytest.approx([0, 0.6, 0.6]) and look(flat)["brightness"] == pytest.approx(0.4)
    assert look(flat)["fine_detail"] == pytest.approx(1)
    wave = 128 + 100 * torch.sin(torch.arange(8) * 2 * math.pi / 8)
    assert look(wave.byte().expand(1, 1, 8, 8))["fine_detail"] < 1e-3  # rounding to bytes
    assert look(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))["fine_detail"] == 0


def test_copies_of_training_pictures_are_detected(extractor):
    """Copies are nearer to the training pictures than real pictures are; other real pictures are not."""
    real = real_pictures(DIGITS, "train", "train")
    rows, others, others_are = real.floor(297)
    assert (len(real.pictures[rows]), len(others), others_are) == (1500, 297, "the other split")
    judge = Evaluation(real, extractor, 297)
    copies, _, number = judge(real.training[:297])
    assert copies["nearest"]["samples"] == 0 and number.tolist() == list(range(297))
    assert copies["nearest_in_features"]["samples"] < 1e-5  # float32, in batches of another size
    assert copies["nearest_in_features"]["copies"] == 1
    assert copies["nearest"]["copies"] == 1 and copies["classes"]["covered"] == 10
    honest, _, _ = judge(others)
    assert honest["nearest"]["copies"] < 0.02 and honest["nearest_in_features"]["copies"] < 0.05
    assert honest["frechet"] == honest["floor"]["frechet"] and honest["floor"]["n"] == 297
    assert json.loads(json.dumps(honest)) == honest


@pytest.mark.slow
def test_more_samples_than_real_pictures_are_also_compared_in_the_same_number(extractor):
    real = real_pictures(DIGITS, "train", "train")
    report, _, _ = Evaluation(real, extractor, 400)(torch.cat([real.floor(400)[1], real.training[:103]]))
    assert (report["n"], report["as_few"]["n"], report["floor"]["n"]) == (400, 297, 297)
    floor = {name: value for name, value in report["floor"].items() if name not in ("of", "to")}
    assert report["as_few"] == pytest.approx(floor, rel=1e-6)  # features in float32, in batches of other sizes
    assert report["frechet"] < report["as_few"]["frechet"]  # more pictures, and some of the reference itself


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_the_floor_has_no_picture_on_both_sides_and_is_below_noise(split, extractor):
    real = real_pictures(DIGITS, split, "train")
    rows, others, _ = real.floor(10**6)
    sides = [set(map(tuple, pictures.flatten(1).tolist())) for pictures in (real.pictures[rows], others)]
    assert not sides[0] & sides[1]  # no two digits are equal
    assert torch.equal(real.training, digits("train")) and torch.equal(real.pictures, digits(split))
    judge = Evaluation(real, extractor, 250)
    if split == "all":  # two halves alike; of the other splits the classifier has seen one side only
        assert abs(judge.floor["kernel"]) < 3 * judge.floor["kernel_error"]
    noise = torch.randint(256, (250, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert judge(noise)[0]["frechet"] > 5 * judge.floor["frechet"]


@pytest.mark.slow
def test_the_floor_of_a_folder_is_the_distance_of_its_halves(tmp_path, capsys):
    """Unseen real pictures have the distance of the floor, and are as near as the pictures of the folder."""
    torch.manual_seed(0)
    rows = torch.randperm(1797).tolist()
    for i in rows[:900]:
        Image.fromarray(digits("all")[i, 0].numpy()).save(tmp_path / f"{i:04}.png")
    real = real_pictures(DIGITS | {"dataset": "Folder", "data_path": tmp_path}, "train", "train")
    half, others, _ = real.floor(900)
    both = torch.cat([real.pictures[half], others]).flatten(1).tolist()
    assert len(real.pictures) == 900 and sorted(both) == sorted(real.pictures.flatten(1).tolist())
    unseen = digits("all")[rows[900:1350]]
    report, _, _ = Evaluation(real, extractor_for("Digits", 1, torch.device("cpu")), 450)(unseen)
    near, error = report["nearest"], report["frechet_error"] + report["floor"]["frechet_error"]
    assert near["samples"] == pytest.approx(near["real"], rel=0.03)  # 450 of 900: 0.003 of 0.14 is two standard errors
    assert near["copies"] < 0.03
    assert abs(report["frechet"] - report["floor"]["frechet"]) < 3 * error
    assert extractor_for("Folder", 1, torch.device("cpu")) is None and "no distances" in capsys.readouterr().out


def test_too_few_pictures_are_refused(tmp_path):
    for i in range(19):
        Image.new("L", (8, 8), 10 * i).save(tmp_path / f"{i}.png")
    with pytest.raises(DataError, match="19 pictures are too few to compare with; at least 20"):
        real_pictures(DIGITS | {"dataset": "Folder", "data_path": tmp_path}, "train", "train")


def test_without_torch_fidelity_other_features_are_used_with_advice(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    assert extractor_for("Folder", 3, torch.device("cpu")).name == "classifier_cifar10"
    assert "CIFAR-10's classifier are used, because Inception is missing: pip install" in capsys.readouterr().out


def test_evaluate_writes_a_report_and_the_nearest_neighbours(in_process, trained, tmp_path):
    args = ("--sample_info", "DDIM_2_0p0", "DDPM_2_0p0", "--sample_num", 60, "--seed", 3, "--save_dir", tmp_path)
    run = in_process("test_solver.py", "--model_path", trained, "--test_mode", "evaluate", *args)
    assert run.returncode == 0, run.stderr
    for text in ("frechet distance", "kernel distance", "nearest of 1,500", "evenness", "fine detail", "SHA-256"):
        assert run.stdout.count(text) == 2
    reports = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("*_evaluate.json"))]
    expected = {"n": 60, "seed": 3, "split": "train", "data": "Digits", "weights": "ema", "step": 6}
    expected["model"] = "digits.pt"
    assert all({key: report[key] for key in expected} == expected for report in reports)
    assert {report["sample_info"] for report in reports} == {"DDIM_2_0p0", "DDPM_2_0p0"}
    assert all(report["seconds"] >= 0 and report["floor"]["n"] == 60 for report in reports)
    for picture in tmp_path.glob("*_neighbours.png"):
        assert Image.open(picture).size == (10 * 34 + 2, 4 * 34 + 2)
    assert len(list(tmp_path.glob("*_neighbours.png"))) == 2
