"""What several test files share."""

import os
from functools import cache

import pytest
import torch
from helpers import scripts

from datasets.folder import warn_once


def pytest_configure(config):
    """Tests that are not marked `cuda` see no CUDA device: they would compile for minutes, and sum in another order."""
    if "cuda" not in config.getoption("-m").replace("not cuda", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


torch.backends.mps.is_available = cache(lambda: False)  # Apple's GPU, likewise; torch.compile knows it as cached
torch.set_num_threads(1)  # as OMP_NUM_THREADS=1 does for the scripts in processes of their own: sums in one order


@pytest.fixture(autouse=True)
def warnings_are_new():
    """What is said once in a process is said once in a test."""
    warn_once.cache_clear()


@pytest.fixture(scope="session")
def in_process():
    """Runs a script as its user does, but in this process: in_process("convert.py", "FROM", "TO")."""
    return scripts.in_process


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A tiny run on Digits: its checkpoint. Tests must leave it as it is."""
    save_dir = tmp_path_factory.mktemp("runs")
    run = scripts.train(save_dir, whole=True)
    assert run.returncode == 0, run.stderr
    return save_dir / "digits" / "digits.pt"


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """The same with labels."""
    save_dir = tmp_path_factory.mktemp("labelled")
    run = scripts.train(save_dir, settings=scripts.LABELLED)
    assert run.returncode == 0, run.stderr
    return save_dir / "digits" / "digits.pt"
