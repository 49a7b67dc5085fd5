"""Files that are damaged, foreign or full of typing errors: each is loaded, or refused with one line."""

import gzip
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from helpers.scripts import ROOT, in_process, refused
from helpers.systems import limited, resource
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from datasets import DataError, load_images
from files.errors import CheckpointError, ConfigError
from runs.config import load_recipe
from runs.network import without_weights
from runs.recipe import KEYS
from runs.run import load_run
from runs.shared_weights import facts_of

MANY = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
LONGEST = 2000  # characters of a message

numbers = st.one_of(
    st.integers(-3, 100), st.sampled_from([10**9, 10**18, -(10**30), 10**400]), st.floats(), st.booleans(), st.none()
)
texts = st.one_of(
    st.text(max_size=8), st.sampled_from(["", "\0", "\ud800", "/etc", "../x", "9" * 5000, "\x1b[2J", "linear"])
)
values = st.recursive(
    numbers | texts, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
changes = st.dictionaries(st.sampled_from([*KEYS, "data_name", "dataset", "base", "unknown"]), values, max_size=3)


@pytest.fixture(autouse=True)
def little_memory():
    """Nothing may take two more GiB of address space: that would be a MemoryError, which no loader catches."""
    if not Path("/proc/self/statm").exists():
        yield
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    with limited("RLIMIT_AS", pages * resource.getpagesize() + (2 << 30)):
        yield


@pytest.fixture(scope="module")
def shared(trained):
    """The bytes of shared weights, without their checksum, as a stranger may write them."""
    run = load_run(trained)
    facts = json.dumps(facts_of(run.recipe, "ema", run.step))
    return safetensors.torch.save(run.model.state_dict(), {"diffusion_pytorch": facts})


def split(content):
    """(header as a dict, tensors) of a safetensors file."""
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header, tensors):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def loaded_or_refused(load, *errors):
    """What load() gives, or None where it raises one of these errors, with a message."""
    try:
        return load()
    except errors as error:
        assert str(error)


def load_file(content, tmp_path, name="x.safetensors"):
    (tmp_path / name).write_bytes(content)
    return loaded_or_refused(lambda: load_run(tmp_path / name), CheckpointError, ConfigError)


@MANY
@given(changes)
@example({"num_res_blocks": 10**9})
@example({"image_size": 10**9})
@example({"model_channels": 8192, "channel_mult": [64] * 32})
@example({"channel_mult": [1] * 10**5})
@example({"diffusers_unet": {"block_out_channels": [10**5] * 8, "layers_per_block": 60}})
def test_recipes_in_shared_weights(shared, tmp_path, change):
    header, tensors = split(shared)
    facts = json.loads(header["__metadata__"]["diffusion_pytorch"])
    facts["recipe"] |= change
    header["__metadata__"]["diffusion_pytorch"] = json.dumps(facts) if change != {"base": 0} else "[" * 10**5
    run = load_file(joined(header, tensors), tmp_path)
    if run is not None:
        assert not Path(run.recipe["data_path"]).is_absolute()


def test_a_step_that_is_no_number_is_refused(shared, tmp_path):
    header, tensors = split(shared)
    facts = json.loads(header["__metadata__"]["diffusion_pytorch"])
    header["__metadata__"]["diffusion_pytorch"] = json.dumps(facts | {"step": "many"})
    (tmp_path / "x.safetensors").write_bytes(joined(header, tensors))
    with pytest.raises(CheckpointError, match="metadata is invalid"):
        load_run(tmp_path / "x.safetensors")


@MANY
@given(st.integers(0, 2**16), st.binary(min_size=1, max_size=8))
def test_flipped_bytes_in_shared_weights(shared, tmp_path, at, patch):
    at %= len(shared) - len(shared) // 2  # the header, and some of the tensors
    load_file(shared[:at] + patch + shared[at + len(patch) :], tmp_path)


@MANY
@given(st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x"]), values, min_size=1, max_size=2))
@example({"dtype": "F8_E8M0"})
@example({"dtype": "C64", "shape": [1]})
@example({"shape": [10**9, 10**9]})
def test_headers_of_shared_weights(shared, tmp_path, change):
    header, tensors = split(shared)
    name = next(name for name in header if name != "__metadata__")
    header[name] |= change
    load_file(joined(header, tensors), tmp_path)


@pytest.mark.parametrize("weight", [[1, 2], None])
@pytest.mark.parametrize("published", [False, True])
def test_weights_that_are_no_tensors(trained, tmp_path, weight, published):
    content = torch.load(trained, weights_only=True)
    if published:
        content = {"epoch": 1, "unet_model": content["ema"] | {"down_blocks.0.0.weight": weight}}
    else:
        content["ema"]["down_blocks.0.0.weight"] = weight
    torch.save(content, tmp_path / "x.pt")
    args = ("--model_path", tmp_path / "x.pt", "--test_mode", "random_gen", "--sample_num", 1, "--image_size", 8)
    refused(in_process("test_solver.py", *args, "--save_dir", tmp_path), 1, "x.pt", "weight")


@MANY
@given(changes, values)
@example({"model_channels": 4096, "channel_mult": [64, 64, 64]}, None)
def test_configurations(tmp_path, change, other):
    content = {"Train_Setting": {}, "Train_Data": {"X": {"data_path": "x"} | change, "Y": other}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    for name in ("X", "Y"):
        loaded_or_refused(lambda name=name: without_weights(load_recipe(tmp_path / "c.yaml", name)), ConfigError)


def one_block(line):
    return f"Train_Setting: {{}}\nTrain_Data:\n  X:\n    data_path: x\n    {line}\n"


@pytest.mark.parametrize(
    "line",
    [
        "seed: 2020-01-01", "seed: 2020-99-99", "seed: !!python/object:os.system {}", "!!set {a, b}: 1",
        "? [a, {b: c}]\n    : 1", "seed: !!binary x", "seed: !!omap [1]", "seed: !!map 3", "<<: [1, 2]",
        "seed: !!int x",
        "seed: " + "9" * 5000, "? " + "9" * 5000 + "\n    : 1", "batch_size: " + "[" * 5000,
        'preview_info: "\\ud800"', "dataset: &a [*a]",
    ],
)  # fmt: skip
def test_odd_lines_of_yaml(tmp_path, line):
    check_odd_yaml(tmp_path, one_block(line.replace("data_path", "save_dir")))


@pytest.mark.parametrize("text", ["\0", "\xed\xa0\x80"])
def test_odd_yaml(tmp_path, text):
    check_odd_yaml(tmp_path, text)


def check_odd_yaml(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text, encoding="latin1")
    args = ("--config", tmp_path / "c.yaml", "--data_name", "X", "--dry_run", "--save_dir", tmp_path)
    run = in_process("train_solver.py", *args)
    refused(run, 2, "c.yaml")
    assert len(run.stderr) < LONGEST and run.stderr.count("\n") == 1


@MANY
@given(st.binary(max_size=4), st.lists(st.integers(0, 2**32 - 1), max_size=5), st.binary(max_size=64), st.booleans())
@example(b"\0\0\x08\3", [2, 4, 4], bytes(32), False)
@example(b"\0\0\x08\3", [0, 28, 28], b"", False)
@example(b"\0\0\x08\3", [5, 0, 28], b"", True)
@example(b"\0\0\x08\3", [2**32 - 1] * 3, b"", True)
@example(b"\0\0\x08\xff", [1] * 5, b"", False)
def test_idx_files(tmp_path, start, dimensions, data, zipped):
    content = start + b"".join(number.to_bytes(4, "big") for number in dimensions) + data
    for name in ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"):
        for old in (tmp_path / name, tmp_path / f"{name}.gz"):
            old.unlink(missing_ok=True)
        (tmp_path / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(content, 1) if zipped else content)
    images = loaded_or_refused(lambda: load_images("Mnist", tmp_path, "train", 4, 1, download=False), DataError)
    assert images is None or (images.dtype == np.uint8 and images.shape[1:] == (1, 4, 4) and len(images))


def test_names_that_share_a_tensor_are_converted(trained, tmp_path):
    content = torch.load(trained, weights_only=True)
    weight = content["ema"]["middle_block.0.conv1.2.weight"]
    content["ema"]["middle_block.2.conv1.2.weight"] = weight
    torch.save(content, tmp_path / "x.pt")
    assert in_process("convert.py", tmp_path / "x.pt", tmp_path / "x.safetensors").returncode == 0


def test_the_files_that_are_shipped_are_loaded(tmp_path):
    """The limits of the keys leave room for what there is."""
    for file in sorted((ROOT / "checkpoints").glob("*.safetensors")):
        if "classifier" not in file.name:
            assert load_run(file).recipe["image_size"] in (8, 32, 64, 128) and b"sha256" in file.read_bytes()[:20_000]
    shutil.copy(ROOT / "checkpoints" / "digits.safetensors", tmp_path / "D.SAFETENSORS")
    assert load_run(tmp_path / "D.SAFETENSORS").recipe["data_name"] == "Digits"  # the ending may be in capitals
