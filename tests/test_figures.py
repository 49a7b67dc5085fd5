"""The benchmarks that draw pictures for the documents, or count for them."""

import re

import numpy as np
import pytest
import torch
from helpers.networks import small_run
from helpers.pictures import pixels
from helpers.scripts import ROOT, call, refused
from PIL import Image
from torch import nn

from runs.config import load_recipe
from runs.network import build
from runs.shared_weights import facts_of, save_shared_weights

DEVELOPMENT = ["--sample_info", "DDIM_4_0p0", "--timesteps", "19", "9"]


@pytest.fixture
def benchmark(monkeypatch):
    """A module of benchmarks/."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return __import__


@pytest.fixture
def weights(tmp_path):
    """A file of shared weights with random values, and 20 timesteps."""
    run = small_run(timestep_num=20)
    facts = facts_of(run.recipe, "ema", 1)
    save_shared_weights(tmp_path / "x.safetensors", run.model.state_dict(), facts, torch.float32)
    return tmp_path / "x.safetensors"


def test_a_strip_has_a_column_for_each_timestep_and_two_rows_for_each_sample(benchmark, weights, tmp_path):
    main, given = benchmark("development").main, ["--model_path", weights, "--save_dir", tmp_path, *DEVELOPMENT]
    made = call(main, "development.py", *given, "--sample_num", 2)
    assert made.returncode == 0, made.stderr
    strip = pixels(tmp_path / "x_development.png")
    cell = lambda row, column: strip[26 + 40 * row :, strip.shape[1] - 40 * (3 - column) :][:32, :32]  # noqa: E731
    assert strip.shape[0] == 26 + 4 * 40
    for sample in (0, 2):
        assert (cell(sample, 2) == cell(sample + 1, 2)).all()  # the result, which is its own prediction
        assert (cell(sample, 0) != cell(sample + 1, 0)).any() and (cell(sample, 0) != cell(sample, 1)).any()
    assert (cell(0, 0) != cell(2, 0)).any()


@pytest.mark.parametrize("flags, says", [(["--timesteps", 18], "--timesteps 18"), (["--labels", "3"], "--labels")])
def test_a_strip_that_cannot_be_drawn_is_refused(benchmark, weights, flags, says):
    given = ["--model_path", weights, *DEVELOPMENT, *flags]
    refused(call(benchmark("development").main, "development.py", *given), 2, says)


def test_the_plots_show_each_number_of_their_tables(benchmark):
    plots = benchmark("plots")
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    section = plots.section(text, "Few steps")
    first, second = plots.few_steps(section)
    points = [points for curves in (*first.values(), second) for points in curves.values()]
    assert sum(map(len, points)) == len(re.findall("±", " ".join(sum(plots.rows(section), [])))) > 50
    assert list(first) == ["Fashion_Mnist", "Cifar10", "Digits"] and set(second[next(iter(second))]) > {5, 1000}
    assert all(re.search(floor, section) for floor in plots.PANELS.values())
    table = "| sampler | data | 5 steps | 20 steps |\n| --- | --- | --- | --- |\n| UniPC | A | – | **2.0 ± 0.5** |\n"
    assert plots.few_steps(table) == ({"A": {"UniPC": {20: (2.0, 0.5)}}}, {})

    section = plots.section(text, "Small diffusion by minutes")
    points = [
        points for data in plots.by_images(section).values() for kind in data.values() for points in kind.values()
    ]
    assert sum(map(len, points)) == len(re.findall("±", " ".join(sum(plots.rows(section), [])))) > 30
    table = "| A | images seen | guidance | Fréchet | kernel |\n| --- | --- | --- | --- | --- |\n"
    table += "| `ours` | 1,200 | 2 | 3.1 ± 0.5 | – |\n| theirs | 900 | – | 7 ± 1 | -0.1 ± 0.2 |\n"
    kinds = {"Fréchet": {"ours, guidance 2": {1200: (3.1, 0.5)}, "theirs": {900: (7, 1)}}}
    assert plots.by_images(table) == {"A": kinds | {"kernel": {"theirs": {900: (-0.1, 0.2)}}}}


def test_operations_are_those_of_the_layers(benchmark):
    """Counted by hand: a convolution or a linear layer, and the two products of attention."""
    recipe = load_recipe(ROOT / "config.yaml", "Digits", ["attention_resolutions=null"])
    model, counted = build(recipe)[0], []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda layer, _, out: counted.append(2 * out.numel() * layer.weight[0].numel()))
        if type(layer).__name__ == "AttentionBlock":  # q k, and its product with v
            layer.register_forward_hook(
                lambda _, __, out: counted.append(2 * 2 * out.shape[1] * (out.shape[2] * out.shape[3]) ** 2)
            )
    model(torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long))
    parameters, once, step = benchmark("operations").operations(recipe)
    assert parameters == sum(weight.numel() for weight in model.parameters())
    assert once == pytest.approx(sum(counted) / 1e9, rel=1e-9)  # integers
    assert 2.9 * once < step < 3 * once  # backward: two products for each, but not into the picture


def test_small_figures_are_enlarged_by_a_whole_factor(benchmark):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 342, 3), np.uint8)
    enlarged = np.asarray(benchmark("figures").enlarged(Image.fromarray(pixels)))
    assert (enlarged == pixels.repeat(2, 0).repeat(2, 1)).all()
    assert benchmark("figures").enlarged(Image.new("L", (600, 3))).size == (600, 3)
