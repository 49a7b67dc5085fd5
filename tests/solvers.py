"""Runs both scripts as a user runs them, small."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TINY = {"model_channels": 8, "channel_mult": 1, "num_res_blocks": 1, "num_heads": 2, "batch_size": 8}
TINY |= {"sample_num": 9, "preview_info": "DDIM_2_0p0", "max_steps": 6, "save_every": 3}
# downloads fail at once, on any machine: nothing listens on the discard port
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")


def script(name, *args, **keywords):
    command = [sys.executable, ROOT / name, *map(str, args)]
    environment = os.environ | NO_NETWORK | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, **keywords)


def train(save_dir, *args, data_name="Digits", settings=None, **keywords):
    """Six steps of a tiny network; settings over TINY, keywords for subprocess.run."""
    overrides = [f"{key}={value}" for key, value in (TINY | (settings or {})).items()]
    base = ["--data_name", data_name, "--save_dir", save_dir, "--set", *overrides]
    return script("train_solver.py", *base, *args, **keywords)


def refused(run, code, *says):
    """The run ended with this code and one line on stderr that says all of this; progress bars aside."""
    lines = [line for line in re.split(r"[\r\n]+", run.stderr) if line.startswith("error:")]
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr and len(lines) == 1, run.stderr
    assert all(str(text) in lines[0] for text in says), lines[0]
