"""run_test.sh: bash runs it, and the commands that it makes of it run in fewer steps."""

import os
import subprocess

import pytest
from helpers.scripts import ENVIRONMENT, ROOT, in_process
from helpers.systems import linux

pytestmark = linux

RECORDER = """#!/bin/sh
printf '%s\\n' "$@" '' >> "$CALLS"
"""


def calls_of(script, folder, **variables):
    """What bash calls python with in a script, as lists of arguments."""
    (folder / "bin").mkdir()
    (folder / "bin" / "python").write_text(RECORDER)
    (folder / "bin" / "python").chmod(0o755)
    environment = ENVIRONMENT | variables | {"CALLS": str(folder / "calls")}
    environment["PATH"] = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", script], cwd=ROOT, env=environment, check=True, capture_output=True)
    return [call.splitlines() for call in (folder / "calls").read_text().strip().split("\n\n")]


@pytest.mark.slow
def test_run_test_sh_runs(trained, tmp_path):
    text = (ROOT / "run_test.sh").read_text()
    for slow, quick in (
        ("DDPM_100", "DDPM_3"),
        ("_{10,20,50}_", "_{1,2}_"),
        ("_50_", "_4_"),
        ("UniPC_10", "UniPC_2"),
        ("_num 300 ", "_num 20 "),
        ("_num 30 ", "_num 3 "),
        ("SAMPLE_NUM=49", "SAMPLE_NUM=4"),
    ):
        assert slow in text
        text = text.replace(slow, quick)
    (tmp_path / "run_test.sh").write_text(text.replace("SAVE_DIR=results", f"SAVE_DIR={tmp_path}/pictures"))
    calls = calls_of(tmp_path / "run_test.sh", tmp_path, MODEL_PATH=str(trained))
    modes = {call[call.index("--test_mode") + 1] for call in calls}
    assert len(calls) == 7 and modes == {"random_gen", "compare", "interpolate", "inpaint", "evaluate"}
    for call in calls:
        run = in_process(*call)
        assert run.returncode == 0, run.stderr
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 4 + 2 + 1 + 2 + 5 + 1 + 1
    assert len(list((tmp_path / "pictures").iterdir())) == 16 + 2  # compare's CSV, evaluate's JSON


def test_run_test_sh_uses_weights_that_are_shipped(tmp_path):
    """Unchanged, without MODEL_PATH."""
    models = {call[call.index("--model_path") + 1] for call in calls_of(ROOT / "run_test.sh", tmp_path)}
    assert all((ROOT / model).is_file() for model in models)
