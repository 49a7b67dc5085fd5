"""Every script in benchmarks/, run as a user runs it, on tiny networks and data."""

import importlib
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.scripts import briefly
from PIL import Image
from sklearn.datasets import load_digits

import test_solver
from datasets import load_images
from evaluation.features import extractor_for, shipped_classifier
from files.errors import ConfigError
from runs.recipe import plain_recipe
from runs.run import load_run
from utils.command_line import run

ROOT = Path(__file__).parent.parent
TINY = ["model_channels=8", "channel_mult=1", "num_res_blocks=1", "num_heads=2", "batch_size=32", "max_steps=2"]
TINY += ["sample_num=4", "preview_info=DDIM_1_0p0"]


@pytest.fixture
def load(monkeypatch):
    """Imports a script of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.chdir(ROOT)
    briefly(monkeypatch)
    return importlib.import_module


@pytest.fixture
def call(monkeypatch, capsys):
    """Calls a script's main with these arguments and returns what it printed."""

    def call(module, *args):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, args)])
        module.main()
        return capsys.readouterr().out

    return call


def cells(line):
    """The texts between the bars of a table's row."""
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.slow
def test_ablations(load, call, tmp_path, monkeypatch):
    ablations = load("ablations")
    command = ["--only", "tricks", "--sample_info", "DDPM_9_0p0", "--seeds", 0, 1, "--sample_num", 16]
    command += ["--save_dir", tmp_path]
    text = call(ablations, *command, "--set", *TINY)
    head, _, *rows, real, _, file = text.splitlines()
    assert [cells(row)[0] for row in rows] == list(ablations.TABLES["tricks"])
    for row in rows:
        assert all(re.fullmatch(r"\d+\.\d+ ± \d+\.\d+", cell) for cell in cells(row)[1:]), row
    assert len({row.partition("|")[2].split("|", 1)[1] for row in rows}) == 4  # each cell is another network
    assert "16 others" in real and float(cells(real)[1]) < min(float(cells(row)[1].split()[0]) for row in rows)
    assert Image.open(file).width > 4 * 4 * 32  # four grids of 4 x 4 pictures

    networks = [load_run(folder / f"{folder.name}.pt") for folder in tmp_path.iterdir() if folder.is_dir()]
    settings = {(trained.recipe["loss_weight"], trained.recipe["seed"], trained.step) for trained in networks}
    assert settings == {("none", 0, 2), ("none", 1, 2), ("p2", 0, 2), ("p2", 1, 2)} and len(networks) == 4


@pytest.mark.slow
def test_minutes(load, call, tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    minutes = load("minutes")
    monkeypatch.setattr("training.speed.TRIAL", 4)
    monkeypatch.setattr("evaluation.features.IMAGENET_SIDE", 32)
    tiny = " ".join(text for text in TINY if "max_steps" not in text)
    arms = ["diffusers model_channels=8", f"small {tiny} optimizer=muon", f"Digits {tiny} num_classes=auto"]
    folder = tmp_path / "new"
    command = ["--minutes", 0.005, "--data_name", "Digits", "--sample_info", "DPMpp_2_0p0", "--guidance", 1, 2]
    command += ["--sample_num", 20, "--save_dir", folder, "--seeds", 1]
    with pytest.raises(ConfigError, match="label_dropout=0 the network only knows"):  # before the first training
        call(minutes, *command, "--arms", *arms, f"{arms[2]} label_dropout=0")
    head, _, *rows = call(minutes, *command, "--arms", *arms).splitlines()[2:]
    assert [cells(row)[:2] for row in rows] == [[arm, "1"] for arm in (*arms, arms[2])]
    lines = [json.loads(line) for line in (folder / "minutes.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [list(line.items()) for line in lines] == [list(zip(cells(head), cells(row), strict=True)) for row in rows]
    assert [line["guidance"] for line in lines] == ["–", "–", "1", "2"]
    assert all(int(line["images"].replace(",", "")) > 0 for line in lines)
    assert all(re.fullmatch(r"\d+\.\d\d ± \d+\.\d\d", line["Fréchet distance"]) for line in lines)
    assert all(re.fullmatch(r"-?\d+\.\d{3} ± \d+\.\d{3}", line["kernel distance"]) for line in lines)
    assert len(list(folder.glob("*.png"))) == len(rows)
    assert sorted(load_run(file).recipe["optimizer"] for file in folder.glob("*/*.pt")) == ["adam", "muon"]


def test_classifier(load, call, tmp_path, monkeypatch):
    classifier = load("classifier")
    monkeypatch.setattr("evaluation.features.SHIPPED", tmp_path)
    monkeypatch.setitem(classifier.EPOCHS, "Digits", 2)
    text = call(classifier, "--data_name", "Digits")
    file, accuracy = re.match(r"(.*): (.*)% of 297 test pictures correct", text).groups()
    extractor = shipped_classifier(Path(file), torch.device("cpu"))
    digits = torch.from_numpy((load_digits().images[1500:] * (255 / 16)).round().astype(np.uint8))[:, None]
    right = extractor.classes(extractor.features(digits)).numpy() == load_digits().target[1500:]
    assert f"{right.mean():.2%}" == f"{accuracy}%" and right.mean() > 0.5  # 0.1 by chance


@pytest.mark.slow
def test_a_classifier_of_colour_pictures(load, call, tmp_path, monkeypatch):
    """Pictures in the format of CIFAR-10, whose class is their main colour."""
    classifier, rng = load("classifier"), np.random.default_rng(0)
    monkeypatch.setattr("evaluation.features.SHIPPED", tmp_path)
    monkeypatch.setitem(classifier.EPOCHS, "Cifar10", 6)
    for i, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        labels = rng.integers(3, size=60)
        pictures = rng.integers(0, 100, (60, 3, 1024)) + 100 * (np.arange(3) == labels[:, None])[..., None]
        key = str if i % 2 else str.encode  # as Python 3 and Python 2 wrote them
        content = {key("data"): pictures.reshape(60, 3072).astype(np.uint8), key("labels"): labels.tolist()}
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=2))
    text = call(classifier, "--data_name", "Cifar10", "--data_path", tmp_path)
    assert float(re.search(r": (.*)% of 60 test pictures correct", text)[1]) > 80  # 33 by chance
    extractor = extractor_for("Cifar10", 3, torch.device("cpu"))
    red = torch.tensor([200, 50, 50], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    assert extractor.name == "classifier_cifar10" and extractor.classes(extractor.features(red)) == 0


def test_varied_pictures_are_moved_and_mirrored(load):
    torch.manual_seed(0)
    x = torch.arange(2 * 100).view(2, 1, 10, 10).float().repeat(100, 1, 1, 1)
    frames = {}
    for flip in (False, True):
        padded = np.pad(x[0, 0].numpy()[:, ::-1] if flip else x[0, 0].numpy(), 4, "reflect")
        frames |= {padded[i : i + 10, j : j + 10].tobytes(): (flip, i, j) for i in range(9) for j in range(9)}
    found = [frames[picture.numpy().tobytes()] for picture in load("classifier").varied(x)[::2, 0]]
    assert [set(values) for values in zip(*found, strict=True)] == [{False, True}, set(range(9)), set(range(9))]


def write_idx(file, array):
    """uint8 values as an IDX file."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    file.write_bytes(b"\0\0\x08" + bytes([array.ndim]) + sizes + array.astype(np.uint8).tobytes())


@pytest.mark.slow
def test_precision(load, call, tmp_path, monkeypatch):
    precision = load("precision")
    monkeypatch.setattr(precision, "SAMPLER", "DDIM_2_0p0")
    tiny = dict(text.split("=") for text in TINY)
    monkeypatch.setattr(precision, "SETTINGS", precision.SETTINGS | tiny | {"image_size": 8})
    digits = load_digits()
    pictures = np.pad(digits.images.repeat(3, 1).repeat(3, 2) * (255 / 16), ((0, 0), (2, 2), (2, 2)))  # 28x28
    for part, rows in (("train", slice(0, 200)), ("t10k", slice(200, 300))):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", pictures[rows])
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", digits.target[rows])
    command = ["--data_path", tmp_path, "--save_dir", tmp_path / "runs", "--objective", "pred_v", "--seeds", 3]
    text = call(precision, *command, "--sample_num", 10)
    floor, head, _, *rows = text.splitlines()
    table = [dict(zip(cells(head), cells(row), strict=True)) for row in rows]
    trained = [(row["objective"], row["precision"], row["seed"]) for row in table]
    assert trained == [("pred_v", "fp32", "3"), ("pred_v", "bf16", "3")]
    losses = [[float(cell) for cell in cells(row)[3:8]] for row in rows]
    for *quarters, mean in losses:
        assert min(quarters) < mean < max(quarters)
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # two small steps in bfloat16, which has 8 bits
    assert float(floor.split()[-1]) < float(table[0]["distance"])
    recipes = [load_run(file).recipe for file in tmp_path.glob("runs/*/*.pt")]
    assert {(recipe["precision"], recipe["image_size"]) for recipe in recipes} == {("fp32", 8), ("bf16", 8)}


@pytest.mark.parametrize("trained", [pytest.param(True, marks=pytest.mark.slow), False], ids=["shipped", "untrained"])
def test_sampling_speed(load, call, monkeypatch, trained):
    pytest.importorskip("diffusers")
    sampling_speed = load("sampling_speed")
    small = {"image_size": 8, "model_channels": 8, "channel_mult": [1], "num_res_blocks": 1}
    monkeypatch.setattr(sampling_speed, "plain_recipe", lambda name: plain_recipe(name, **small))
    model = ["--model_path", "checkpoints/digits.safetensors"] if trained else []
    with pytest.raises(ConfigError, match="has labels"):
        call(sampling_speed, "--model_path", "checkpoints/mnist.safetensors")
    text = call(sampling_speed, *model, "--batch_size", 2, "--steps", 1, "--rounds", 1)
    assert float(re.search(r"differ by at most (\S+)\n", text)[1]) < 1e-5
    speeds = dict(re.findall(r"^((?:diffusers|ours) \w+) +([\d.]+) +[\d.]+ +[\d.]+ s ", text, re.M))
    assert list(speeds) == ["diffusers fp32", "ours fp32", "diffusers bf16", "ours bf16"]
    assert all(float(speed) > 0 for speed in speeds.values())
    apart = re.search(r"bf16 and fp32 differ by at most (\d+) of 255, by ([\d.]+) on average", text)
    assert bool(apart) == trained and (not apart or float(apart[2]) <= int(apart[1]) < 128)


@pytest.mark.slow
def test_training_speed(load, call, monkeypatch):
    training_speed = load("training_speed")
    monkeypatch.setattr(training_speed, "load_images", lambda *data: load_images(*data)[:32])
    text = call(training_speed, "--width", 8, "--batch_size", 4, "--rounds", 1, "--steps", 1)
    speeds = dict(re.findall(r"^(\S.*?) +([\d.]+) images/s", text, re.M))
    assert {"plain loop, fp32", "our network alone", "ours"} <= set(speeds)
    assert bool(training_speed.diffusers) == ("diffusers, fp32" in speeds) == ("diffusers, bf16" in speeds)
    assert all(float(speed) > 0 for speed in speeds.values())
    assert "ours is  1.00 times as fast" in text and "TFLOP/s" in text


@pytest.fixture
def scripts_here(load, monkeypatch):
    """Makes subprocess.run call the scripts in this process, with few steps and samples."""
    less = {"test_solver.py": ["--sample_info", "DDIM_2_0p0", "--sample_num", "4"]}
    less["benchmarks/ablations.py"] = ["--sample_info", "DDIM_2_0p0", "--set", *TINY]
    less["benchmarks/development.py"] = ["--sample_info", "DDIM_4_0p0", "--timesteps", "999", "249"]
    less["benchmarks/plots.py"] = []  # it plots the numbers of a document
    modules = {"test_solver.py": test_solver}
    modules |= {script: load(Path(script).stem) for script in less if script != "test_solver.py"}

    def run_here(command, cwd, stdout):
        _, script, *args = command
        monkeypatch.setattr(sys, "argv", [script, *args, *less[script]])
        try:
            run(modules[script].main)
        except SystemExit as ended:
            return subprocess.CompletedProcess(command, ended.code)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run_here)


DIGITS = ["compare", "final", "interpolate", "loss_and_betas", "progress", "smoothness"]
FLOWERS = [f"flower102_{name}.jpg" for name in ("compare", "development", "final", "progress")]


@pytest.mark.parametrize(
    "weights, redrawn, code",
    [
        pytest.param("digits", [f"digits_{name}.png" for name in DIGITS], 0, marks=pytest.mark.slow),
        ("stylegan_face", ["stylegan_face_final.jpg", "stylegan_face_progress.jpg"], 1),
        pytest.param("flower102", [*FLOWERS, "flower102_film.webp"], 1, marks=pytest.mark.slow),
    ],
    ids=["all", "without_real_pictures", "photographs"],
)
def test_figures(load, call, scripts_here, tmp_path, monkeypatch, weights, redrawn, code):
    monkeypatch.setattr(figures := load("figures"), "IMAGES", tmp_path)
    monkeypatch.delitem(figures.BENCHMARKS["digits"], "tricks")  # test_ablations makes it
    if weights == "stylegan_face":  # a folder, which nothing downloads
        monkeypatch.setitem(figures.FIGURES, weights, {"final": figures.SAMPLES, "edit": "--test_mode edit"})
    with pytest.raises(SystemExit) as ended:
        call(figures, "--only", weights, "--data", f"stylegan_face={tmp_path / 'none'}")
    assert ended.value.code == code
    assert {file.name for file in tmp_path.iterdir()} == {*redrawn, "few_steps.png", "minutes.png"}
    for file in tmp_path.iterdir():  # pictures of the documents
        assert np.asarray(Image.open(file)).std() > 0 and (ROOT / "images" / file.name).exists()
