"""What several test files share."""

import importlib
import re
import sys
from types import SimpleNamespace

import pytest
from helpers.scripts import NO_NETWORK, ROOT, train

from utils.command_line import run


@pytest.fixture
def in_process(monkeypatch, capsys):
    """Runs a script as its user does, but in this process: they are many, and torch takes seconds to load."""

    def call(name, *args):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        for variable, value in NO_NETWORK.items():
            monkeypatch.setenv(variable, value)
        code = 0
        try:
            run(importlib.import_module(name.removesuffix(".py")).main)
        except SystemExit as ended:
            code = ended.code
        return SimpleNamespace(returncode=code, **dict(zip(("stdout", "stderr"), capsys.readouterr(), strict=True)))

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A tiny run on Digits: its checkpoint."""
    save_dir = tmp_path_factory.mktemp("runs")
    run = train(save_dir)
    assert run.returncode == 0, run.stderr
    assert re.search(r"48 images in \d+ s, [\d.]+ images/s on (cpu|cuda)", run.stdout)
    assert "held out loss" in run.stdout + run.stderr
    return save_dir / "digits" / "digits.pt"
