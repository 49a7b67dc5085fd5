"""What several benchmarks share: training with the loop of train_solver.py, and timing calls in turn."""

import io
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

import torch

import train_solver
from runs.config import load_recipe
from runs.network import build
from training.pictures import with_classes
from training.processes import Processes
from training.trajectories import with_teacher
from utils.device import pick_device

ROOT = Path(__file__).parent.parent


def recipe_with(name: str, settings: dict, args: Namespace) -> dict:
    """The recipe of args.data_name in config.yaml with these settings; args.set overrides both.

    The run is called `name`, followed by args.set, so that other settings make another run.
    """
    settings = settings | {"pth_save_name": "_".join([name, *args.set]).replace("/", "_")}
    given = {text.partition("=")[0] for text in args.set}
    overrides = [f"{key}={value}" for key, value in settings.items() if key not in given] + args.set
    flags = {key: getattr(args, key) for key in ("data_path", "save_dir") if getattr(args, key)}
    return load_recipe(ROOT / "config.yaml", args.data_name, overrides, flags)


def train_quietly(recipe: dict) -> Path:
    """Trains as train_solver.py does, or resumes, with only the progress bar on the screen. Returns the checkpoint."""
    recipe = with_teacher(with_classes(recipe))
    torch.manual_seed(recipe["seed"])
    model, diffusion = build(recipe)
    with Processes(pick_device()) as processes, redirect_stdout(io.StringIO()), ExitStack() as until_exit:
        train_solver.train(recipe, model, diffusion, processes, "auto", until_exit)
    return Path(recipe["save_dir"], recipe["pth_save_name"], f"{recipe['pth_save_name']}.pt")


def seconds_of(function: Callable[[], object]) -> float:
    """The wall-clock seconds of one call. On CUDA the function has to wait for its own result."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def in_turn(calls: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The seconds that each call returns in each round. All are called in turn; a first round warms up."""
    taken = [{name: call() for name, call in calls.items()} for _ in range(rounds + 1)]
    return {name: [round_[name] for round_ in taken[1:]] for name in calls}
