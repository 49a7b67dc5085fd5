"""The house: which room may import which, how long a file may grow, and that the papers speak of real flags."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEAVES = {"models", "diffusion", "datasets"}
SHARED = LEAVES | {"utils"}
MAY_IMPORT = {leaf: {leaf} for leaf in LEAVES} | {"utils": SHARED}
MAY_IMPORT |= {room: SHARED | {room} for room in ("training", "evaluation", "sharing")}  # they do not know each other
SCRIPTS = ("train_solver", "test_solver", "convert")
OURS = {*MAY_IMPORT, *SCRIPTS}


def imported_rooms(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute here"
            yield node.module.split(".")[0]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_one_way(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for file in files:
        assert OURS & set(imported_rooms(file)) <= MAY_IMPORT[room], file


def test_the_scripts_do_not_know_each_other():
    for name in SCRIPTS:
        assert not set(SCRIPTS) & set(imported_rooms(ROOT / f"{name}.py"))


def test_no_file_outgrows_one_sitting():
    rooms = [*MAY_IMPORT, "tests"]
    files = [*ROOT.glob("*.py"), *(file for room in rooms for file in (ROOT / room).rglob("*.py"))]
    too_long = {file.name: n for file in files if (n := len(file.read_text(encoding="utf-8").splitlines())) > 250}
    assert len(files) > 20 and not too_long


def test_every_flag_in_the_papers_exists():
    known = {"--nproc_per_node"}  # torchrun's
    for script in (*(f"{name}.py" for name in SCRIPTS), "benchmarks/ablations.py"):
        text = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
        known |= set(re.findall(r"--[a-z_]+", text.stdout))
    for paper in ("README.md", "README_zh.md", "run_test.sh"):
        named = set(re.findall(r"(?<![\w-])--[a-z_]+", (ROOT / paper).read_text(encoding="utf-8")))
        assert named and named <= known, (paper, named - known)


@pytest.mark.parametrize("paper", ["README.md", "README_zh.md"])
def test_every_file_in_the_papers_exists(paper):
    text = (ROOT / paper).read_text(encoding="utf-8")
    links = {link for pair in re.findall(r"\]\(([^)#:]+)\)|src=\"([^\":]+)\"", text) for link in pair if link}
    assert any(link.endswith(".png") for link in links)
    assert [link for link in links if not (ROOT / link).exists()] == []
