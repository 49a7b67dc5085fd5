"""The guided tour: its notebook runs, and what is saved of it is whole."""

import re

import nbformat
import pytest
from helpers.scripts import ENVIRONMENT, ROOT
from nbclient import NotebookClient

TOUR = ROOT / "docs" / "tour.ipynb"


def test_the_saved_tour_is_small_has_pictures_and_no_paths():
    assert TOUR.stat().st_size < 1e6
    cells = [cell for cell in nbformat.read(TOUR, as_version=4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 9
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert all(len(cell.source.splitlines()) <= 15 for cell in cells)
    texts = [cell.source for cell in cells] + [output.get("text", "") for output in outputs]
    assert not re.search(r"(^|[\s'\"])/(home|root|tmp|work|usr)/", "\n".join(texts))


@pytest.mark.slow
def test_the_tour_runs(monkeypatch):
    for variable, value in ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)
    notebook = nbformat.read(TOUR, as_version=4)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(TOUR.parent)}}).execute()
    assert all(cell.get("execution_count") for cell in notebook.cells if cell.cell_type == "code")
