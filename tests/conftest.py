"""What several test files share."""

import re

import pytest
from solvers import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A tiny run on Digits: its checkpoint."""
    save_dir = tmp_path_factory.mktemp("runs")
    run = train(save_dir)
    assert run.returncode == 0, run.stderr
    assert re.search(r"48 images in \d+ s, [\d.]+ images/s on (cpu|cuda)", run.stdout)
    assert "held out loss" in run.stdout + run.stderr
    return save_dir / "digits" / "digits.pt"
