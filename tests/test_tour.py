"""The guided tour: its notebook runs, and what is saved of it is whole."""

import importlib
import json
import os
import re
import shutil
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


QUICKER = [
    ('"UniPC_10_0p0", labels', '"UniPC_1_0p0", labels'),
    ("_10_0p0", "_4_0p0"),
    ("(5, 10, 50)", "(1, 1, 2)"),
    ("DDIM_20_0p0", "DDIM_2_0p0"),
    ("DDPM_50_0p0", "DDPM_2_0p0"),
    ("max_steps=300", "max_steps=5 preview_info=DDIM_1 model_channels=8 batch_size=8"),
    ("import tempfile", "import tempfile\n\nfrom helpers import scripts"),
    ("subprocess.run(command, capture_output=True, text=True)", "scripts.training(*command[2:])"),
]


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_on_colab_the_first_cell_clones_and_installs(tmp_path):
    """In an empty folder, with Colab's module and the answer of its session server (`path` as it has it)."""
    project, empty = tmp_path / "project", tmp_path / "content"
    project.mkdir()
    empty.mkdir()
    for name in ("config.yaml", "requirements.txt"):
        shutil.copy(ROOT / name, project)
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=project, check=True)
    path = "fileId=https%3A%2F%2Fgithub.com%2Fsome-one%2FDiffusion.pytorch%2Fblob%2Fmain%2Fdocs%2Ftour.ipynb"
    colab = f"""
import io, json, sys, urllib.request
sys.modules["google.colab"] = object()
answer = json.dumps([{{"name": "tour.ipynb", "path": {path!r}}}]).encode()
urllib.request.urlopen = lambda address: io.BytesIO(answer) if address.endswith(":9000/api/sessions") else None
"""
    first, second = [cell.source for cell in nbformat.read(TOUR, as_version=4).cells if cell.cell_type == "code"][:2]
    lines = "\n".join([colab, first, second, "print(os.getcwd(), sys.path[0])"])
    instead_of = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{project.as_uri()}.insteadOf"}
    environment = instead_of | {"GIT_CONFIG_VALUE_0": "https://github.com/some-one/Diffusion.pytorch"}
    done = subprocess.run(
        [sys.executable, "-c", lines], cwd=empty, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(empty / "tour")] * 2


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
