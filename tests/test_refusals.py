"""What train_solver.py and test_solver.py refuse, in one line, and what stays whole."""

import os
import pickle
from functools import partial

import pytest
import torch
from helpers.scripts import on_a_full_disk, refused, train
from helpers.systems import linux
from PIL import Image


@pytest.mark.parametrize(
    "args, code, says",
    [
        (["--data_name", "Digitz"], 2, ["'Digitz' is not known", "did you mean Digits?", "config.yaml"]),
        (["--data_name", "Digits", "--set", "batchsize=3"], 2, ["did you mean batch_size?"]),
        (["--data_name", "Digits", "--set", "learning_rate=fast"], 2, ["learning_rate must be a number", "'fast'"]),
        (["--data_name", "Digits", "--set", "preview_info=DDIM50"], 2, ["METHOD_STEPS_ETA", "DDIM_50_0p0"]),
        (["--data_name", "Digits", "--set", "image_size=10"], 2, ["image_size 10", "multiple of 4", "8 or 12"]),
        (["--data_name", "Digits", "--set", "num_heads=5"], 2, ["num_heads=5"]),
        (["--data_name", "Digits", "--set", "compile=1"], 2, ["compile must be one of auto, true", "not 1"]),
        (
            ["--data_name", "Digits", "--set", "gradient_accumulation=3"],
            2,
            ["batch_size=64 is not a multiple of 3", "gradient_accumulation=3"],
        ),
        (["--data_name", "Digits", "--set", "batch_size=1501"], 2, ["1500 pictures are fewer than batch_size=1501"]),
        (["--data_name", "Digits", "--config", "none.yaml"], 2, ["none.yaml", "No such file"]),
        (["--data_name", "Digits", "--dry"], 2, ["--dry"]),
        (["--data_name", "Digits", "--batch_size", "8"], 2, ["--batch_size 8", "--set batch_size=8"]),
        (["--data_name", "Digits", "--lr=1e-3", "--channel_mult", "1", "2"], 2, ["--set lr=1e-3 channel_mult=1,2"]),
        ([], 2, ["--data_name"]),
        (["--data_name", "Cifar10"], 1, ["Cifar10: no data in", "download failed", "cifar-10-batches-py"]),
        (["--data_name", "Mnist"], 1, ["Mnist: no data in", "download failed", "train-images-idx3-ubyte.gz"]),
        (["--data_name", "Flower102"], 1, ["Flower102: no data in", "download failed", "image_00001.jpg"]),
        (["--data_name", "StyleGAN_Face"], 1, ["is not a folder"]),
        (["--data_name", "Digits", "--save_dir", "LICENSE"], 1, ["LICENSE"]),
        (["--data_name", "Digits", "--resume", "none.pt"], 2, ["--resume", "'none.pt'", "auto", "never"]),
    ],
)
def test_training_refuses(in_process, tmp_path, args, code, says):
    paths = ["--save_dir", tmp_path / "runs", "--data_path", tmp_path / "data"]
    refused(in_process("train_solver.py", *paths, *args), code, *says)
    assert not list(tmp_path.rglob("*.pt"))


def test_a_run_is_never_overwritten(trained):
    before = trained.read_bytes()
    save_dir = trained.parent.parent
    refused(train(save_dir, settings={"timestep_num": 500}), 1, "timestep_num: was 1000, is 500", "pth_save_name")
    refused(train(save_dir, "--resume", "never"), 1, "digits.pt exists", "pth_save_name")
    assert trained.read_bytes() == before


@linux
@pytest.mark.slow
def test_a_full_disk_leaves_the_older_checkpoints(tmp_path):
    assert train(tmp_path).returncode == 0
    before = (tmp_path / "digits" / "digits.pt").read_bytes()
    limit = len(before) // 2  # bytes a file may have: the next checkpoint does not fit, a picture does
    run = on_a_full_disk(lambda: train(tmp_path, settings={"max_steps": 9}), limit)
    refused(run, 1, "digits.pt was not written", "MiB are free", "Older checkpoints are unchanged")
    assert (tmp_path / "digits" / "digits.pt").read_bytes() == before
    assert not list(tmp_path.rglob("*.part"))


@pytest.fixture
def sampling(in_process):
    return partial(in_process, "test_solver.py")


def bad_checkpoint(kind, trained, folder):
    file = folder / "bad.pt"
    content = torch.load(trained, weights_only=True)
    if kind == "missing":
        return file
    if kind == "cut":
        file.write_bytes(trained.read_bytes()[:-100])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "picture":
        Image.new("RGB", (8, 8)).save(file, "png")
    elif kind == "malicious":

        class Evil:
            def __reduce__(self):
                return os.system, (f"touch {folder}/owned",)

        torch.save(content | {"evil": Evil()}, file)
    elif kind == "malicious pickle":
        file.write_bytes(pickle.dumps({"recipe": os.system}, protocol=2))
    elif kind == "foreign":
        torch.save({"epoch": 3, "state_dict": content["model"]}, file)
    elif kind == "a list":
        torch.save([1, 2], file)
    elif kind == "another format":
        torch.save(content | {"format": 99}, file)
    elif kind == "recipe short":
        torch.save(content | {"recipe": {"data_name": "Digits"}}, file)
    elif kind == "recipe wrong":
        torch.save(content | {"recipe": content["recipe"] | {"image_size": "big"}}, file)
    elif kind == "recipe impossible":
        torch.save(content | {"recipe": content["recipe"] | {"num_heads": 3}}, file)
    elif kind == "weights missing":
        torch.save(content | {"ema": dict(list(content["ema"].items())[1:])}, file)
    elif kind == "weights not finite":
        torch.save(content | {"ema": {name: w * torch.nan for name, w in content["ema"].items()}}, file)
    elif kind == "weights of another width":
        torch.save(content | {"recipe": content["recipe"] | {"model_channels": 16}}, file)
    return file


@pytest.mark.parametrize(
    "kind, says",
    [
        ("missing", "does not exist"),
        ("cut", "damaged"),
        ("empty", "damaged"),
        ("picture", "damaged or not a checkpoint"),
        ("malicious", "nothing in it was run"),
        ("malicious pickle", "nothing in it was run"),
        ("foreign", "not a checkpoint of this project: it holds ['epoch', 'state_dict']"),
        ("a list", "not a checkpoint of this project: it holds [1, 2]"),
        ("another format", "format 99"),
        ("recipe short", "its recipe lacks dataset"),
        ("recipe wrong", "image_size must be a whole number"),
        ("recipe impossible", "num_heads=3"),
        ("weights missing", "time_embed.0.weight"),
        ("weights not finite", "time_embed.0.weight is not finite"),
        ("weights of another width", "do not fit the network"),
    ],
)
def test_sampling_refuses_a_bad_checkpoint(trained, tmp_path, sampling, kind, says):
    file = bad_checkpoint(kind, trained, tmp_path)
    args = ["--model_path", file, "--test_mode", "random_gen", "--save_dir", tmp_path / "results"]
    refused(sampling(*args), 1, "bad.pt", says)
    assert not (tmp_path / "owned").exists() and not (tmp_path / "results").exists()


BETWEEN = ["--test_mode", "interpolate"]
FILL, BITS = ["--test_mode", "inpaint", "--mask_box", "2", "2", "3", "3"], ["--test_mode", "evaluate", "--bits"]


@pytest.mark.parametrize(
    "args, code, says",
    [
        (["--sample_info", "DDIM50"], 2, ["'DDIM50'", "METHOD_STEPS_ETA", "DDIM_50_0p0"]),
        (["--sample_info", "PLMS_50_0p0"], 2, ["'PLMS_50_0p0'", "DDPM, NaiveDDPM, DDIM, DPMpp"]),
        (["--sample_info", "DPMpp_0_0p0"], 2, ["'DPMpp_0_0p0'", "steps: 1 or more"]),
        (["--sample_info", "DDIM_50_1p5"], 2, ["'DDIM_50_1p5'", "eta: 0p0 to 1p0"]),
        (["--sample_info", "DDIM_1001_0p0"], 2, ["1001 steps", "1000 timesteps"]),
        (["--sample_num", "0"], 2, ["--sample_num", "0 is not from 1 to 10000000"]),
        (["--sample_num", "two"], 2, ["--sample_num", "two"]),
        (["--batch_size", "0"], 2, ["--batch_size", "0 is not at least 1"]),
        (["--seed", "-1"], 2, ["--seed"]),
        (["--image_size", "32"], 2, ["image_size=32", "trained with 8"]),
        (["--image_channel", "3"], 2, ["image_channel=3", "trained with 1"]),
        (["--training_timestep_num", "500"], 2, ["timestep_num=500", "trained with 1000"]),
        (["--beta_schedule", "linear"], 2, ["beta_schedule=linear", "trained with cosine"]),
        (["--test_mode", "generate"], 2, ["--test_mode", "random_gen"]),
        (["--save_dir", "LICENSE"], 1, ["LICENSE"]),
        (["--sample_dir", "LICENSE"], 1, ["LICENSE"]),
        (["--device", "cuda:99"], 2, ["'cuda:99' is not available", "cpu"]),
        (["--device", "meta"], 2, ["'meta' is not available"]),
        (["--device", "cpu", "--compile"], 2, ["--compile is for CUDA devices"]),
        (["--data_name", "Digits"], 2, ["--data_name is for --test_mode interpolate"]),
        (["--lambda_num", "5"], 2, ["--lambda_num is for --test_mode interpolate"]),
        (["--test_mode", "compare", "--sample_dir", "d"], 2, ["--sample_dir is for --test_mode random_gen"]),
        ([*BETWEEN, "--data_name", "Cifar10", "--data_path", "LICENSE"], 1, ["Cifar10: no data in LICENSE"]),
        ([*BETWEEN, "--sample_num", "1000000"], 2, ["2000 pictures", "1500"]),
        ([*BETWEEN, "--lambda_num", "1"], 2, ["--lambda_num", "1 is not from 2 to 1000"]),
        ([*BETWEEN, "--interp_mode", "cubic"], 2, ["--interp_mode", "cubic", "slerp"]),
        (
            [*BETWEEN, "--interp_mode", "ddim", "--sample_info", "DDPM_5_0p0"],
            2,
            ["only DDIM with eta 0", "DDIM_50_0p0"],
        ),
        (
            [*BETWEEN, "--interp_mode", "lerp", "ddim", "--sample_info", "DDIM_5_0p0", "DPMpp_5_0p0"],
            2,
            ["only DDIM with eta 0 can be inverted", "not DPMpp_5_0p0"],
        ),
        ([*BETWEEN, "--diffusion_step", "1001"], 2, ["--diffusion_step 1001", "1000 timesteps"]),
        ([*BETWEEN, "--image_indices", "3", "1500"], 2, ["--image_indices 1500", "1500 pictures, numbered from 0"]),
        ([*BETWEEN, "--image_indices", "-1", "3"], 2, ["--image_indices -1"]),
        ([*BETWEEN, "--image_indices", "3"], 2, ["interpolate takes pairs"]),
        ([*BETWEEN, "--image_files", "none.png", "images/digits_final.png"], 2, ["none.png", "No such file"]),
        ([*BETWEEN, "--image_files", "LICENSE", "images/digits_final.png"], 2, ["LICENSE", "cannot identify"]),
        ([*BETWEEN, "--image_files", "a.png", "b.png", "--split", "test"], 2, ["another choice of pictures"]),
        # every sampler before the first is used
        (["--test_mode", "edit", "--edit_mode", "ddim", "--sample_info", "DDIM_2_0p0", "DPMpp_2_0p0"], 2, ["DPMpp_2"]),
        ([*FILL, "--sample_info", "DDPM_2_0p0", "UniPC_2_0p0"], 2, ["steps of DDPM or DDIM", "not of UniPC_2_0p0"]),
        ([*BITS, "--sample_info", "DDPM_2_0p0", "DDIM_2_0p0"], 2, ["DDPM in at least 2 steps", "not of DDIM_2_0p0"]),
        ([*BITS, "--sample_num", "1"], 2, ["--sample_num 1: evaluate needs at least 2"]),
    ],
)
def test_sampling_refuses(trained, tmp_path, sampling, args, code, says):
    base = ["--model_path", trained, "--test_mode", "random_gen", "--save_dir", tmp_path / "results"]
    refused(sampling(*base, *args), code, *says)
    assert not [file for file in tmp_path.rglob("*") if file.suffix in (".png", ".json")]
