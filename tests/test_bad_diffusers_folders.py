"""Damaged and malicious diffusers folders: each is refused in one line, and nothing in them is run."""

import json
import shutil
import warnings

import pytest
import safetensors.torch
import torch
from helpers.networks import small_run

from files.errors import CheckpointError
from sharing.diffusers_folder import export_folder, import_folder

UNET, SCHEDULER, INDEX, RECIPE = (
    "unet/config.json",
    "scheduler/scheduler_config.json",
    "model_index.json",
    "recipe.json",
)
# name of the fault: (file, entries of its JSON to change, what the message names)
EDITS = {
    "another pipeline": (INDEX, {"_class_name": "LDMPipeline"}, "LDMPipeline"),
    "another component": (INDEX, {"vqvae": ["diffusers", "VQModel"]}, "scheduler, unet, vqvae"),
    "another network": (UNET, {"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
    "newer network": (UNET, {"gated_attention": True}, "gated_attention"),
    "another scheduler": (SCHEDULER, {"_class_name": "ScoreSdeVeScheduler"}, "ScoreSdeVeScheduler"),
    "newer recipe": (RECIPE, {"version": 2}, "format 2; this version reads format 1"),
    "no recipe in recipe.json": (RECIPE, {"recipe": None}, "recipe.json: its metadata is invalid .its recipe"),
}
ODD_VALUES = [
    (UNET, "block_out_channels", []),
    (UNET, "norm_num_groups", 0),
    (UNET, "attention_head_dim", 0),
    (UNET, "time_embedding_type", "x"),
    (UNET, "freq_shift", "a"),
    (SCHEDULER, "num_train_timesteps", 0),
    (SCHEDULER, "trained_betas", []),
    (INDEX, "unet", []),
]
EDITS |= {f"{key}={value}": (file, {key: value}, "sprites") for file, key, value in ODD_VALUES}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "sprites"
    export_folder(small_run(), folder)
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    """A good folder, to be damaged."""
    return shutil.copytree(exported, tmp_path / "sprites")


def refused(folder, says):
    with pytest.raises(CheckpointError, match=says) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_folder(folder)
    assert len(str(caught.value)) < 600


def test_the_undamaged_folder_is_accepted(folder):
    assert import_folder(folder).step == 1234


@pytest.mark.parametrize("fault", EDITS)
def test_a_changed_configuration_is_refused(folder, fault):
    name, edit, says = EDITS[fault]
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | edit))
    refused(folder, says)


@pytest.mark.parametrize(
    "key, value, says",
    [("beta_schedule", "linear", "recipe.json disagrees"), ("objective", "pred_flow", "recipe.json disagrees")],
)
def test_a_recipe_that_disagrees_with_the_configurations_is_refused(folder, key, value, says):
    content = json.loads((folder / RECIPE).read_text())
    content["recipe"][key] = value
    (folder / RECIPE).write_text(json.dumps(content))
    refused(folder, says)


@pytest.mark.parametrize("text, says", [("{", "sprites: "), ("[1]", "configuration is invalid"), (None, "config.json")])
def test_a_configuration_that_is_damaged_or_missing_is_refused(folder, text, says):
    (folder / UNET).unlink()
    if text:
        (folder / UNET).write_text(text)
    refused(folder, says)


def test_a_folder_without_an_index_is_refused(folder):
    (folder / INDEX).unlink()
    refused(folder, "no model_index.json")


@pytest.mark.parametrize(
    "damage, says",
    [
        ("missing", "missing tensor conv_in.bias"),
        ("renamed", "tensor (conv_in.bias|extra.bias)"),
        ("extra", "unexpected tensor extra.bias"),
        ("another shape", "conv_in.bias"),
        ("not finite", "not finite"),
    ],
)
def test_a_wrong_tensor_is_refused_by_name(folder, damage, says):
    weights, name = folder / "unet" / "diffusion_pytorch_model.safetensors", "conv_in.bias"
    tensors = safetensors.torch.load_file(weights)
    if damage == "missing":
        del tensors[name]
    elif damage == "renamed":
        tensors["extra.bias"] = tensors.pop(name)
    elif damage == "extra":
        tensors["extra.bias"] = tensors[name].clone()
    elif damage == "another shape":
        tensors[name] = tensors[name][:2].clone()
    else:
        tensors[name][0] = torch.nan
    safetensors.torch.save_file(tensors, weights)
    refused(folder, says)


class Malicious:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@pytest.mark.parametrize(
    "damage, says",
    [
        ("truncated", "Unable to load weights"),
        ("missing", "no file named diffusion_pytorch_model.safetensors"),
        ("pickle in disguise", "Unable to load weights"),
        ("pickle", "Unable to load weights"),
    ],
)
def test_damaged_or_malicious_weights_are_refused_and_not_run(folder, tmp_path, damage, says):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    else:
        weights.unlink()
    if damage.startswith("pickle"):
        file = weights if damage == "pickle in disguise" else weights.with_suffix(".bin")
        torch.save({"conv_in.weight": Malicious(tmp_path / "was run")}, file)
    refused(folder, says)
    assert not (tmp_path / "was run").exists()
