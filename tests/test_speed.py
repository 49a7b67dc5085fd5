"""The trial before a run on a CPU, what a resumed run keeps of it, and the memory that stays between steps."""

import inspect
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from helpers.scripts import ENVIRONMENT, ROOT, state_hash, train
from helpers.systems import linux, resource

import train_solver
import training.speed
from runs.config import quicker
from training.processes import Processes
from training.speed import best_way
from training.way import usual_way
from utils.device import keep_freed_memory, one_thread_if_faster

CPU = torch.device("cpu")
USUAL = {"device": "cpu", "precision": "bf16", "channels_last": False, "threads": 4}  # a CPU whose flags say bfloat16


@pytest.fixture
def chosen(monkeypatch):
    """best_way on such a CPU, where a step of 100 pictures takes seconds(way): the choice, and the number of pictures
    in each step of the trial."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def call(seconds, last=None, steps=10**7, **recipe):
        now, counts = 0.0, []

        def step(way):
            def call(count, rate):
                nonlocal now
                assert rate == 0
                now += seconds(way) * count / 100
                counts.append(count)

            return call

        recipe = {
            "precision": "auto",
            "gradient_accumulation": 1,
            "batch_size": 100,
            "compile": "auto",
            "learned_guidance": 1.0,
            "max_steps": steps,
            "max_minutes": None,
        } | recipe
        usual = USUAL | ({} if recipe["precision"] == "auto" else {"precision": recipe["precision"]})
        monkeypatch.setattr(training.speed, "usual_way", lambda *_: usual)
        monkeypatch.setattr(training.speed, "TrainingStep", lambda *args: step(args[-1]))
        monkeypatch.setattr(training.speed.time, "perf_counter", lambda: now)
        batch = SimpleNamespace(first=lambda count: count)
        batches = SimpleNamespace(steps=lambda start, stop: [batch] * (stop - start), steps_per_epoch=1)
        return best_way(recipe, torch.nn.Linear(100, 10), None, Processes(CPU), batches, last), counts

    return call


def test_the_fastest_way_is_chosen_and_a_slow_one_given_up_after_a_step(chosen, capsys):
    def busy(way):  # threads wait for each other, and bfloat16 is emulated
        return 1.0 * (3 if way["threads"] > 1 else 1) * (30 if way["precision"] == "bf16" else 1)

    assert chosen(busy) == (USUAL | {"precision": "fp32", "threads": 1}, [2] * 3 + [100] * (3 + 3 + 1 + 3))
    said = capsys.readouterr().out
    assert "fp32, contiguous, 1 thread: 3.00 times as fast as fp32, contiguous, 4 threads" in said
    assert "time        10,000,000 steps take about 116 days here\n" in said  # of a second each

    def contended(way):
        return 1000.0 if way["threads"] > 1 else 1.0

    assert chosen(contended)[1] == [2] * (1 + 1 + 3) + [100] * (3 + 3 + 3)  # of one thread a whole batch can be timed
    assert "10,000,000 steps take about 116 days here\n" in capsys.readouterr().out

    def modern(way):
        return 1.0 / (2 if way["precision"] == "bf16" else 1) / (1.2 if way["channels_last"] else 1) / way["threads"]

    assert chosen(modern)[0] == USUAL | {"channels_last": True}


def test_a_network_that_is_too_large_for_this_machine_is_tried_with_two_pictures(chosen, capsys):
    """A trial takes seconds then, not many minutes in silence."""
    way, counts = chosen(lambda way: 300 / way["threads"], gradient_accumulation=50, steps=10**6)
    assert set(counts) == {2} and sum(counts) * 300 / 4 / 100 < 60 and way["threads"] == 4
    assert "time        1,000,000 steps take about 868 days here\n" in capsys.readouterr().out  # of 75 s each
    chosen(lambda way: 300 / way["threads"], max_minutes=60, steps_per_minute=1.0)
    assert "time  " not in capsys.readouterr().out  # it is known


def test_the_usual_stands_unless_another_is_a_tenth_faster(chosen, capsys):
    def alike(way):
        return 1.0 if way == USUAL | {"precision": "fp32"} else 0.92

    assert chosen(alike)[0] == USUAL | {"precision": "fp32"}
    assert "fp32, contiguous, 4 threads: 1.00 times as fast as fp32, contiguous, 4 threads" in capsys.readouterr().out


def test_what_is_set_by_hand_is_obeyed_and_short_runs_get_no_trial(chosen, monkeypatch):
    def busy(way):
        return float(way["threads"])

    assert chosen(busy, precision="bf16")[0] == USUAL | {"threads": 1}
    assert chosen(busy, steps=10) == chosen(busy, compile=True) == (USUAL, [])
    last = USUAL | {"precision": "fp32", "channels_last": True, "threads": 2}
    assert chosen(busy, last) == (last, [])
    assert chosen(busy, last, precision="bf16")[0] == last | {"precision": "bf16"}
    assert chosen(busy, {"step": 3}) == (USUAL, [])  # of an earlier version
    assert chosen(busy, last | {"device": "cuda"}) == (USUAL, [])
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert chosen(busy)[0] == USUAL | {"precision": "fp32"} and chosen(busy, last)[0] == last | {"threads": 4}


def test_a_resumed_run_computes_as_it_began(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with monkeypatch.context() as patch:
        other = {"channels_last": True, "threads": 2}
        patch.setattr(train_solver, "best_way", lambda recipe, *_: usual_way(recipe, CPU) | other)
        assert train(tmp_path / "whole").returncode == 0
        assert train(tmp_path / "parts", settings={"max_steps": 4}).returncode == 0
    again = train(tmp_path / "parts")
    assert "computes    in fp32, channels last, 2 threads, as before" in again.stdout and torch.get_num_threads() == 1
    whole, parts = (tmp_path / name / "digits" / "digits.pt" for name in ("whole", "parts"))
    assert state_hash(whole) == state_hash(parts)


@pytest.mark.parametrize("kind", ["adam", "muon"])
def test_a_trial_leaves_no_trace_in_the_run(tmp_path, monkeypatch, kind):
    settings = {"optimizer": kind, "precision": "fp32"}
    assert train(tmp_path / "plain", settings=settings).returncode == 0
    monkeypatch.setattr(training.speed, "WORTH", 0)
    steps, real = [], training.speed.TrainingStep
    monkeypatch.setattr(training.speed, "TrainingStep", lambda *args: steps.append(args[-1]) or real(*args))
    now = iter(range(10**6))
    monkeypatch.setattr(training.speed.time, "perf_counter", lambda: next(now))  # all are equally fast
    tried = train(tmp_path / "tried", settings=settings)
    assert "1.00 times as fast as fp32, contiguous, 1 thread\n" in tried.stdout
    assert [way["channels_last"] for way in steps] == [False, False, True]  # the first with two pictures
    plain, tried = (tmp_path / name / "digits" / "digits.pt" for name in ("plain", "tried"))
    assert state_hash(plain) == state_hash(tried)


@pytest.mark.parametrize("seconds, chosen", [({2: 0.02, 1: 0.1}, 2), ({2: 0.1, 1: 0.02}, 1)])
def test_sampling_takes_one_thread_where_that_is_faster(monkeypatch, seconds, chosen):
    threads = [2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)

    def call():
        time.sleep(seconds[threads[-1]])

    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    one_thread_if_faster(call)
    assert threads == [2]
    monkeypatch.delenv("OMP_NUM_THREADS")
    one_thread_if_faster(call)
    assert threads[-1] == chosen


FAULTS = """
before = faults()
keep_freed_memory()
faults()
print(before, faults())
"""


def faults():
    """Page faults of 20 blocks of 8 MiB, each with 2,048 pages, which are then freed: glibc alone keeps up to two."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [bytearray(b"1") * 2**23 for _ in range(20)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@linux
@pytest.mark.parametrize("by_hand", [{}, {"MALLOC_TRIM_THRESHOLD_": "100000"}])
def test_freed_memory_is_kept_unless_the_environment_says_otherwise(by_hand):
    environment = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("MALLOC_")} | by_hand
    needed = "import ctypes, os, platform, resource\n"  # no torch, which takes seconds to load
    functions = inspect.getsource(faults) + inspect.getsource(keep_freed_memory)
    command = [sys.executable, "-c", needed + functions + FAULTS]
    before, after = map(int, subprocess.run(command, cwd=ROOT, env=environment, capture_output=True).stdout.split())
    assert before > 20 * 16  # even with pages of 512 KiB
    assert (after < before / 10) == (not by_hand)


@pytest.mark.parametrize(
    "device, compiles, seconds, steps",
    [("cpu", False, 1, 23), ("cpu", False, 20, 1), ("cpu", True, 20, 23), ("cuda", False, 20, 23)],
)
def test_slow_steps_of_a_cpu_are_timed_once(monkeypatch, device, compiles, seconds, steps):
    """max_minutes=20 would otherwise begin with more minutes than it lasts."""
    now, taken = 0.0, []

    def step(batch, rate, late):
        nonlocal now
        now += seconds
        taken.append(batch.step)
        return None, torch.tensor(0.0), None

    monkeypatch.setattr(training.speed.time, "perf_counter", lambda: now)
    step.scaler, step.optimizers, step.processes = torch.amp.GradScaler("cpu", enabled=False), [], Processes(CPU)
    step.way, step.parallel, step.network = {"device": device}, 0, int(compiles)
    batches = SimpleNamespace(steps=lambda start, stop: [SimpleNamespace(step=i) for i in range(start, stop)])
    assert training.speed.steps_per_minute(step, batches) == pytest.approx(60 / seconds)
    assert taken == list(range(steps))


def test_what_does_not_run_on_a_cpu_is_timed_before_its_first_step(monkeypatch, capsys):
    recipe, way = {"max_minutes": None, "max_steps": 600, "steps_per_minute": None}, {"device": "mps"}
    step, batches = SimpleNamespace(recipe=recipe, way=way), SimpleNamespace(steps_per_epoch=1)
    monkeypatch.setattr(training.speed, "steps_per_minute", lambda *args, trial: 10)
    way["device"] = "cpu"
    training.speed.say_time(step, batches)  # `best_way` has said it
    assert capsys.readouterr().out == ""
    way["device"] = "mps"
    training.speed.say_time(step, batches)
    assert capsys.readouterr().out == "time        600 steps take about 60 minutes here\n"


def test_the_blocks_with_smaller_networks_are_named(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("Train_Data: {Own: {data_path: x}, Own_laptop: {base: Own}, Other: {data_path: y}}")
    assert quicker(config, "Own").startswith("quicker     --data_name Own_laptop (on CPU cores): ")
    assert quicker(config, "Other") == quicker(config, "Own_laptop") == ""
    shipped = quicker(ROOT / "config.yaml", "Flower102")
    assert "--data_name Flower102_hour (on a GPU) or --data_name Flower102_laptop (on CPU cores)" in shipped
