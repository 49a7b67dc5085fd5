"""The guided tour: its notebook runs, and what is saved of it is whole."""

import importlib
import json
import re
import sys

import nbformat
import pytest
from helpers.scripts import ENVIRONMENT, ROOT

TOUR = ROOT / "docs" / "tour.ipynb"


def check(file):
    """A notebook that is small and was run whole, without an error, and that names no folder of a machine."""
    assert file.stat().st_size < 1e6
    cells = [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 9
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert all(len(cell.source.splitlines()) <= 15 for cell in cells)
    texts = [cell.source for cell in cells] + [output.get("text", "") for output in outputs]
    assert not re.search(r"(^|[\s'\"])/(home|root|tmp|work|usr)/", "\n".join(texts))


def test_the_saved_tour_is_whole():
    check(TOUR)


QUICKER = [
    ('"UniPC_10_0p0", labels', '"UniPC_1_0p0", labels'),
    ("_10_0p0", "_4_0p0"),
    ("(5, 10, 50)", "(1, 1, 2)"),
    ("DDIM_20_0p0", "DDIM_2_0p0"),
    ("DDPM_50_0p0", "DDPM_2_0p0"),
    ("max_steps=300", "max_steps=5 preview_info=DDIM_1 model_channels=8 batch_size=8"),
    ("import subprocess", "from helpers import scripts"),
    ("subprocess.run(command, capture_output=True, text=True)", "scripts.training(*command[2:])"),
]


@pytest.mark.slow
def test_the_tour_runs_in_fewer_steps(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(sys, "argv", ["tour.py", "--save_as", str(tmp_path / "tour.ipynb")])
    for variable, value in ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    text = TOUR.read_text(encoding="utf-8")
    for slow, quick in QUICKER:
        slow, quick = (json.dumps(source)[1:-1] for source in (slow, quick))  # as in the file
        assert slow in text, slow
        text = text.replace(slow, quick)
    with monkeypatch.context() as patch:
        patch.setattr(nbformat, "read", lambda file, as_version: nbformat.reads(text, as_version))
        importlib.import_module("tour").main()
    check(tmp_path / "tour.ipynb")
