"""Runs test_solver.py and reads what it drew."""

import re

import numpy as np
from PIL import Image

from helpers.scripts import in_process


def sample(model, save_dir, *args, mode="random_gen"):
    """One call of test_solver.py that must succeed."""
    run = in_process("test_solver.py", "--model_path", model, "--test_mode", mode, "--save_dir", save_dir, *args)
    assert run.returncode == 0, run.stderr
    return run


def sampling(model, save_dir, mode, *args):
    """The same as a function without arguments, which may fail; two steps of DDIM."""
    base = ("--model_path", model, "--test_mode", mode, "--save_dir", save_dir, "--sample_info", "DDIM_2_0p0")
    return lambda: in_process("test_solver.py", *base, *args)


def pictures(folder):
    """The files of a folder by their names without the time and the seed."""
    return {re.sub(r"^\d{14}_seed\d+_", "", file.name): file for file in folder.iterdir() if file.is_file()}


def pixels(file):
    return np.asarray(Image.open(file))


def numbered(folder, count):
    """The samples 0 to count - 1 of a --sample_dir, as integers: (count, H, W)."""
    return np.stack([pixels(folder / f"{i:06d}.png") for i in range(count)]).astype(int)
