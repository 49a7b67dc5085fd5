"""What the benchmarks refuse, in one line, before anything is trained or drawn."""

import pytest
import torch
from helpers.networks import small_run
from helpers.scripts import ROOT, call, refused

from runs.shared_weights import facts_of, save_shared_weights

MINUTES = {"--minutes": 1, "--arms": "small", "--data_name": "Digits"}


@pytest.fixture
def benchmark(monkeypatch):
    """Calls a script of benchmarks/ with these arguments."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return lambda name, *args: call(__import__(name).main, f"{name}.py", *args)


def weights(folder, **keys):
    """A file of shared weights with random values."""
    run = small_run(**keys)
    save_shared_weights(folder / "x.safetensors", run.model.state_dict(), facts_of(run.recipe, "ema", 1), torch.float32)
    return folder / "x.safetensors"


@pytest.mark.parametrize(
    "given, says",
    [
        *(({"--minutes": minutes}, ["max_minutes must be a number"]) for minutes in ("0", "-1", "nan", "inf", "1e-9")),
        ({"--arms": ""}, ["--arms is empty"]),
        ({"--arms": " "}, ["data_name", "'' is not known"]),
        ({"--arms": "smal"}, ["'smal' is not known"]),
        ({"--arms": "small learning_rate=nan"}, ["learning_rate must be a number"]),
        ({"--arms": "diffusers optimizer=muon"}, ["diffusers does not know optimizer=muon", "learning_rate"]),
        ({"--guidance": "nan"}, ["--guidance", "nan"]),
    ],
)
def test_minutes(benchmark, tmp_path, given, says):
    given = MINUTES | {"--save_dir": tmp_path / "runs"} | given
    refused(benchmark("minutes", *(text for pair in given.items() for text in pair)), 2, *says)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "keys, says",
    [
        ({"timestep_num": 20}, ["--steps", "50 steps", "only 20 timesteps"]),
        ({"patch_size": 2, "timestep_num": 60}, ["x.safetensors cannot be compared", "patch_size=2"]),
    ],
)
def test_sampling_speed(benchmark, tmp_path, keys, says):
    pytest.importorskip("diffusers")
    refused(benchmark("sampling_speed", "--model_path", weights(tmp_path, **keys), "--steps", 50), 2, *says)


@pytest.mark.parametrize(
    "keys, says",
    [
        ({"timestep_num": 40, "dataset": "Digits"}, ["x.safetensors", "only 40 timesteps"]),
        ({"dataset": "Folder"}, ["Folder has no shipped classifier"]),
        ({"dataset": "Flower102", "image_channel": 3}, ["Flower102 has no shipped classifier"]),
        ({"dataset": "Digits", "split": "all"}, []),
    ],
)
def test_inpainting(benchmark, tmp_path, monkeypatch, keys, says):
    def fill(*_):
        raise ZeroDivisionError("it has begun")

    monkeypatch.setattr("inpainting.fill", fill)
    args = ("inpainting", "--model_path", weights(tmp_path, **{"image_channel": 1} | keys))
    if says:
        refused(benchmark(*args), 2, *says)
    else:
        with pytest.raises(ZeroDivisionError, match="it has begun"):
            benchmark(*args)
