"""What several test files share."""

import gc
import os
from collections import Counter
from contextlib import suppress
from functools import cache

import pytest

# The process that hands the tests out to others runs none: what takes seconds to import is imported in the fixtures.


def pytest_configure(config):
    """Tests that are not marked `cuda` see no CUDA device: they would compile for minutes, and sum in another order."""
    gc.set_threshold(20_000)  # few of the objects of these libraries are ever garbage: look rarely
    if "cuda" not in config.getoption("-m").replace("not cuda", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items):
    """Files in the order of their share of slow tests: the last are many short ones, so that all processes end at once.

    In this order pytest-xdist hands them out, with --no-loadscope-reorder. Else it begins with those of most tests.
    """
    tests = Counter(item.path for item in items)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (-slow[item.path] / tests[item.path], tests[item.path]))


def pytest_collection_finish():
    """No collection looks at the half million objects of the imported modules again."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """As OMP_NUM_THREADS=1 does for the scripts in processes of their own: sums in one order. And no GPU of Apple's."""
    import torch

    torch.backends.mps.is_available = cache(lambda: False)  # torch.compile knows it as cached
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def digits_are_read_once():
    """From scikit-learn's text file, which takes a quarter of a second. The tests of CUDA do without scikit-learn."""
    with suppress(ImportError):
        import sklearn.datasets

        sklearn.datasets.load_digits = cache(sklearn.datasets.load_digits)


@pytest.fixture(autouse=True)
def warnings_are_new():
    """What is said once in a process is said once in a test."""
    from datasets.folder import warn_once

    warn_once.cache_clear()


@pytest.fixture(scope="session")
def in_process():
    """Runs a script as its user does, but in this process: in_process("convert.py", "FROM", "TO")."""
    from helpers import scripts

    return scripts.in_process


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A tiny run on Digits: its checkpoint. Tests must leave it as it is."""
    from helpers import scripts

    save_dir = tmp_path_factory.mktemp("runs")
    run = scripts.train(save_dir, whole=True)
    assert run.returncode == 0, run.stderr
    return save_dir / "digits" / "digits.pt"


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """The same with labels."""
    from helpers import scripts

    save_dir = tmp_path_factory.mktemp("labelled")
    run = scripts.train(save_dir, settings=scripts.LABELLED)
    assert run.returncode == 0, run.stderr
    return save_dir / "digits" / "digits.pt"
