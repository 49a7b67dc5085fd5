"""The terminal and the environment: Ctrl-C at any moment, odd arguments, odd names."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.scripts import ENVIRONMENT, ROOT, in_process, refused, tiny, train
from helpers.systems import linux
from PIL import Image


@pytest.mark.slow
@linux
@pytest.mark.parametrize("script", ["train_solver.py", "test_solver.py", "convert.py"])
@pytest.mark.parametrize("library", ["_multiarray_umath", "libtorch_cpu"])
def test_ctrl_c_while_the_imports_run_ends_quietly(script, library):
    process = subprocess.Popen(
        [sys.executable, ROOT / script], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job of a shell ignores it
    )  # fmt: skip
    while library not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"")


@pytest.mark.parametrize(
    "args",
    [
        ("--sample_num", 10**18), ("--sample_num", "9" * 5000), ("--lambda_num", 10**12), ("--batch_size", "\u00b2"),
        ("--sample_num", 10**6), ("--sample_info", "DDIM_" + "9" * 5000 + "_0p0"), ("--seed", -(10**30)),
    ],
)  # fmt: skip
def test_numbers_beyond_reason_are_one_short_line(trained, tmp_path, args):
    base = ("--model_path", trained, "--test_mode", "random_gen", "--save_dir", tmp_path)
    run = in_process("test_solver.py", *base, *args)
    refused(run, 2)
    assert len(run.stderr) < 2000


def test_an_environment_with_one_process_is_no_torchrun(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert train(tmp_path).returncode == 0
    monkeypatch.setenv("RANK", "0")
    assert train(tmp_path).returncode == 0


@linux
def test_a_run_among_its_own_training_pictures_is_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "c.yaml").write_text(f"{{Train_Setting: {{}}, Train_Data: {{Mine: {{data_path: {tmp_path}}}}}}}")
    (tmp_path / "link").symlink_to(tmp_path)
    for save_dir in (tmp_path, tmp_path / "runs", tmp_path / "link" / "runs"):
        for flags in ((), ("--dry_run",)):
            run = train(save_dir, "--config", tmp_path / "c.yaml", *flags, data_name="Mine")
            refused(run, 2, f"save_dir={save_dir} is inside data_path={tmp_path}", "become training pictures")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "c.yaml", "link"]
    assert train(tmp_path, "--data_path", tmp_path).returncode == 0  # Digits are no files


def test_running_out_of_memory_outside_a_step_gives_no_advice_about_steps(tmp_path, monkeypatch):
    def exhausted(*_):
        raise MemoryError

    monkeypatch.setattr("train_solver.find_pictures", exhausted)
    run = train(tmp_path)
    refused(run, 1, "out of memory")
    assert "gradient_accumulation" not in run.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "script, args, flag",
    [
        ("train_solver.py", ["--init_from", ""], "--init_from"), ("train_solver.py", ["--init_from="], "--init_from"),
        ("train_solver.py", ["--set", "max_steps=1", ""], "max_steps=1"), ("convert.py", ["", "x"], "an argument"),
        ("test_solver.py", ["--data_path", ""], "--data_path"), ("test_solver.py", ["--save_dir="], "--save_dir"),
    ],
)  # fmt: skip
def test_an_empty_value_is_refused_and_not_taken_for_a_missing_one(tmp_path, script, args, flag):
    before = tiny(tmp_path) if script == "train_solver.py" else []
    before += ["--model_path", tmp_path / "x", "--test_mode", "random_gen"] if script == "test_solver.py" else []
    refused(in_process(script, *before, *args), 2, f"{flag} is empty: give it a value, or leave it out")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@linux
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_is_full_is_named(unbuffered):
    command = [sys.executable, "-c", "from utils.command_line import run; run(lambda: print('a line'))"]
    with open("/dev/full", "w") as full:
        environment = ENVIRONMENT | {"PYTHONUNBUFFERED": unbuffered}
        run = subprocess.run(command, cwd=ROOT, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert run.stderr == "error: the output (stdout): No space left on device; files saved before are unchanged\n"
    assert run.returncode == 1


@linux
def test_a_path_that_is_not_unicode_is_used_or_named(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    assert train(folder, "--data_path", folder).returncode == 0
    shared = folder / "digits.safetensors"
    assert in_process("convert.py", folder / "digits" / "digits.pt", shared).returncode == 0
    refused(in_process("convert.py", shared, tmp_path / "x"), 1, r"caf\udce9", "is not valid UTF-8")
    shared = shared.rename(tmp_path / shared.name)
    assert in_process("convert.py", shared, tmp_path / "x.safetensors").returncode == 0
    refused(in_process("convert.py", shared, folder / "new"), 2, "cannot be exported", "folder is not valid UTF-8")


def test_ctrl_c_before_the_first_step_is_one_line(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("train_solver.find_pictures", interrupt)
    ended = train(tmp_path)
    assert ended.returncode == 130 and ended.stderr.strip() == "stopped by the keyboard"
