"""Folders that only look like diffusers': each is one clear line, and nothing in it is run."""

import json
import shutil
import warnings

import pytest
import safetensors.torch
import torch
from helpers.networks import small_run

from sharing.diffusers_folder import export_folder, import_folder
from utils.errors import CheckpointError

UNET, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
ODD = [
    (UNET, "block_out_channels", []),
    (UNET, "norm_num_groups", 0),
    (UNET, "attention_head_dim", 0),
    (UNET, "time_embedding_type", "x"),
    (UNET, "freq_shift", "a"),
    (UNET, "sample_size", 30),
    (SCHEDULER, "num_train_timesteps", 0),
    (SCHEDULER, "trained_betas", []),
    ("model_index.json", "unet", []),
]


def break_(folder, how, owned):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    name = "conv_in.bias"
    if how == "missing tensor":
        del tensors[name]
    elif how == "extra tensor":
        tensors["extra.bias"] = tensors[name].clone()
    elif how == "another shape":
        tensors[name] = tensors[name][:2].clone()
    elif how == "not finite":
        tensors[name][0] = torch.nan
    safetensors.torch.save_file(tensors, weights)
    if how == "cut":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif how == "no weights":
        weights.unlink()
    elif how == "pickle in disguise":
        shutil.copy(malicious(owned), weights)
    elif how == "pickle":
        weights.unlink()
        shutil.copy(malicious(owned), weights.with_suffix(".bin"))
    elif how == "no folder of theirs":
        (folder / "model_index.json").unlink()
    edits = {
        "another pipeline": ("model_index.json", {"_class_name": "LDMPipeline"}),
        "another part": ("model_index.json", {"vqvae": ["diffusers", "VQModel"]}),
        "another network": ("unet/config.json", {"_class_name": "UNet2DConditionModel"}),
        "newer network": ("unet/config.json", {"gated_attention": True}),
        "another scheduler": ("scheduler/scheduler_config.json", {"_class_name": "ScoreSdeVeScheduler"}),
        "newer recipe": ("recipe.json", {"version": 2}),
        "another recipe": ("recipe.json", {"recipe": None}),
    }
    edits |= {f"{key}={value}": (file, {key: value}) for file, key, value in ODD}
    if how in edits:
        name, edit = edits[how]
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | edit))
    if how == "recipe of other betas":
        content = json.loads((folder / "recipe.json").read_text())
        content["recipe"]["beta_schedule"] = "linear"
        (folder / "recipe.json").write_text(json.dumps(content))
    if how == "no json":
        (folder / "unet" / "config.json").write_text("{")


class Malicious:
    def __init__(self, owned):
        self.owned = owned

    def __reduce__(self):
        return open, (str(self.owned), "w")


def malicious(owned):
    file = owned.with_name("malicious.bin")
    torch.save({"conv_in.weight": Malicious(owned)}, file)
    return file


@pytest.mark.parametrize(
    "how, says",
    [
        ("missing tensor", "missing tensor conv_in.bias"),
        ("extra tensor", "unexpected tensor extra.bias"),
        ("another shape", "conv_in.bias"),
        ("not finite", "not finite"),
        ("cut", "nothing in them was run"),
        ("no weights", "no file named diffusion_pytorch_model.safetensors"),
        ("pickle in disguise", "nothing in them was run"),
        ("pickle", "nothing in them was run"),
        ("no folder of theirs", "no model_index.json"),
        ("another pipeline", "LDMPipeline"),
        ("another part", "scheduler, unet, vqvae"),
        ("another network", "UNet2DConditionModel"),
        ("newer network", "does not know gated_attention"),
        ("another scheduler", "ScoreSdeVeScheduler"),
        ("newer recipe", "format 2; this version reads format 1"),
        ("another recipe", "its recipe lacks everything"),
        ("recipe of other betas", "recipe.json disagrees"),
        ("no json", "config.json is not JSON"),
        *((f"{key}={value}", "sprites") for _, key, value in ODD),
    ],
)
def test_a_bad_folder_is_one_clear_line(tmp_path, how, says):
    export_folder(small_run(), tmp_path / "sprites")
    break_(tmp_path / "sprites", how, tmp_path / "owned")
    with pytest.raises(CheckpointError, match=says) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_folder(tmp_path / "sprites")
    assert len(str(caught.value)) < 600 and not (tmp_path / "owned").exists()
