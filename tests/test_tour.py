"""The guided tour: its notebook runs, and what is saved of it is whole."""

import re
import subprocess
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


@pytest.mark.slow
def test_the_tour_runs(tmp_path):
    command = [sys.executable, "benchmarks/tour.py", "--save_as", tmp_path / "tour.ipynb"]
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True)
    check(tmp_path / "tour.ipynb")
