"""Going on with a run: from which of its checkpoints, whether it is the same run, and its state put back."""

import glob
import sys
from pathlib import Path

import torch
import yaml
from torch import nn
from torch.optim import Optimizer

from utils.checkpoint import load_checkpoint, load_run, load_weights
from utils.errors import CheckpointError, ConfigError, DamagedCheckpointError
from utils.recipe import KEYS, RESUMABLE, changed_keys, complete_recipe


def pretrained_recipe(recipe: dict) -> dict:
    """The recipe of the weights that a training starts from: its own where it has begun, else that of its init_from."""
    saved = Path(recipe["save_dir"], recipe["pth_save_name"], "recipe.yaml")
    if not saved.exists():
        return load_run(recipe["init_from"]).recipe
    try:
        return complete_recipe(yaml.safe_load(saved.read_text(encoding="utf-8")), str(saved))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{saved} is no recipe any more: move it away, and init_from is read again") from error


def find_checkpoint(file: Path, resume: str) -> dict | None:
    """The content to go on from: `resume` is auto, never or a path; None starts anew.

    auto takes the newest of `file` and its predecessors that is whole; damaged ones are set aside, named.
    Nothing is ever restarted over an older run: CheckpointError if all are damaged, if one cannot be
    read for another reason, or if another start would write over what is there.
    """
    kept = [file, *sorted(file.parent.glob(f"{glob.escape(file.stem)}.*.pt"), key=_age)]
    kept = [candidate for candidate in kept if candidate.exists()]
    if resume != "auto":
        if kept and (resume == "never" or Path(resume).resolve() != kept[0].resolve()):
            raise CheckpointError(
                f"{kept[0]} exists and would be written over: leave --resume away to go on from it, set another "
                "pth_save_name or save_dir, or move it away"
            )
        return None if resume == "never" else load_checkpoint(Path(resume))
    for i, candidate in enumerate(kept):
        try:
            content = load_checkpoint(candidate)
        except DamagedCheckpointError as error:
            print(error, file=sys.stderr)
            continue
        for damaged in kept[:i]:  # or the next save would push the good one out
            print(f"set aside as {damaged.replace(damaged.with_name(damaged.name + '.damaged'))}", file=sys.stderr)
        return content
    if kept:
        raise CheckpointError(f"no good checkpoint among {', '.join(map(str, kept))}: move them away to start anew")
    return None


def _age(file: Path) -> int:
    number = file.suffixes[-2][1:]
    return int(number) if number.isdigit() else sys.maxsize


def check_same_run(content: dict, recipe: dict) -> None:
    """Prints every key that differs from the checkpoint's; CheckpointError with those that may not. The weights that it
    started from may have been moved: their file's name counts."""
    was, recipe = (r | {"init_from": r["init_from"] and Path(r["init_from"]).name} for r in (content["recipe"], recipe))
    if changed := changed_keys(was, recipe, set(KEYS) - RESUMABLE):
        raise CheckpointError(
            f"the checkpoint to go on from was trained otherwise ({'; '.join(changed)}): "
            "keep these keys, or train under another pth_save_name"
        )
    for change in changed_keys(was, recipe, RESUMABLE):
        print(change)


def load_into(content: dict, model: nn.Module, ema: nn.Module, optimizer: Optimizer, circumstances: dict) -> int:
    """Puts a checkpoint into a training; returns the number of steps it has done.

    circumstances: other items of the content, which may differ; this is then said.
    """
    load_weights(model, content["model"], "the checkpoint")
    load_weights(ema, content["ema"], "the checkpoint")
    try:  # how the optimizer works comes from the recipe, from the file its state alone
        optimizer.load_state_dict({**optimizer.state_dict(), "state": content["optimizer"]["state"]})
        for weight, state in optimizer.state.items():  # in the weight's own layout in memory, as fused kernels take it
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment] = torch.empty_like(weight).copy_(state[moment])
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the checkpoint's optimizer state does not fit: {error}") from error
    for name, value in circumstances.items():
        if content.get(name, value) != value:
            print(f"{name}: were {content[name]}, are {value}: from here on the run is another")
    print(f"going on from step {content['step']:,}")
    return content["step"]
