"""Trains a diffusion model on one data set of config.yaml:   python train_solver.py --data_name Flower102

Run the same command again to resume. On several devices: torchrun --nproc_per_node=4 train_solver.py …
"""

import utils.interruptible  # noqa: F401 - first, so that Ctrl-C ends quietly while the others load

# isort: split
from contextlib import ExitStack
from pathlib import Path

import torch
import yaml
from torch import nn

from diffusion import GaussianDiffusion
from files.errors import Stopped
from runs.config import load_recipe, quicker
from runs.network import build, without_weights
from runs.pretrained import load_pretrained, pretrained_recipe
from training.batches import Batches
from training.held_out import HeldOut, held_out_pictures
from training.log import TrainingLog, read_log, save_loss_curve
from training.optimizer import learning_rate
from training.pictures import find_pictures, training_pictures, with_classes
from training.plan import check_batch, describe, dry_run, total_steps, without_impossible_graphs
from training.preview import Preview
from training.processes import Processes, StopRequest
from training.resume import TrainingState, alone_in, begun
from training.speed import best_way, say_time, steps_per_minute
from training.step import TrainingStep
from training.trajectories import HeldOutTrajectories, TrajectoryBatches, compares_features, with_teacher
from utils.command_line import ArgumentParser, run
from utils.device import pick_device


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data_name", required=True, metavar="NAME", help="a block of Train_Data in the configuration, such as Digits")
    add("--config", type=Path, default=Path("config.yaml"), metavar="FILE", help="default: config.yaml")
    add("--data_path", metavar="P", help="where the data are, or where to download them; overrides the configuration")
    add("--save_dir", metavar="D", help="where runs are kept; overrides the configuration")
    add("--init_from", metavar="P", help="start from these weights, with their network and diffusion")
    add("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="override any key")
    add("--device", metavar="cuda:0|mps|cpu", help="default: a GPU if there is one")
    add("--resume", default="auto", choices=("auto", "never"), help="auto (default): continue where this run stopped")
    add("--dry_run", action="store_true", help="print what would be trained, and exit")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    flags = {key: getattr(args, key) for key in ("data_path", "save_dir", "init_from") if getattr(args, key)}
    recipe = load_recipe(args.config, args.data_name, args.set, flags, pretrained_recipe)
    without_weights(recipe)  # what cannot be built ends here, before anything is downloaded
    with Processes(pick_device(args.device)) as processes, ExitStack() as until_exit:
        with processes.first():
            recipe = with_teacher(with_classes(recipe, download=not args.dry_run))
        torch.manual_seed(recipe["seed"])
        model, diffusion = (without_weights if args.dry_run else build)(recipe)
        shown = recipe | {"betas": f"{len(recipe['betas'])} of its own"} if recipe["betas"] else recipe
        print(yaml.safe_dump(shown, sort_keys=False, default_flow_style=None).rstrip())
        print(end=quicker(args.config, args.data_name))
        if args.dry_run:
            dry_run(recipe, model, diffusion, processes.world, processes.device)
        else:
            train(recipe, model, diffusion, processes, args.resume, until_exit)


def train(
    recipe: dict, model: nn.Module, diffusion: GaussianDiffusion, processes: Processes, resume: str,
    until_exit: ExitStack,
) -> None:  # fmt: skip
    """Trains to the last step of the recipe: a new run, or from the last checkpoint of this one.

    resume: "auto" or "never". until_exit: holds the lock on the folder, the signal handlers and the progress bar.
    """
    folder = Path(recipe["save_dir"], recipe["pth_save_name"])
    device, lead = processes.device, processes.rank == 0  # of several processes only the lead writes files

    recipe = without_impossible_graphs(recipe, processes.world, device)
    check_batch(recipe, None, processes.world)  # before hours of drawing trajectories

    # --- the pictures and the checkpoint ---
    with processes.first():
        found = find_pictures(recipe, folder)
        if lead:
            until_exit.enter_context(alone_in(folder))
        recipe, last = begun(recipe, folder, resume)
        images, labels, held = training_pictures(recipe, found, folder, device)
        del found
        check_batch(recipe, len(images), processes.world)
        print(describe(recipe, model, diffusion, len(images), processes.world, device))
    batches_of, held_out_of = (TrajectoryBatches, HeldOutTrajectories) if recipe["trajectories"] else (Batches, HeldOut)
    batches = batches_of(images, recipe, diffusion, device, processes.rank, processes.world, labels)

    # --- the network, its average and the optimizer ---
    if recipe["init_from"] and (not last or compares_features(recipe)):  # of the first weights, also after a resume
        load_pretrained(model, recipe)
    until_exit.callback(torch.set_num_threads, torch.get_num_threads())
    way = best_way(recipe, model, diffusion, processes, batches, last)
    step = TrainingStep(recipe, model, diffusion, processes, way)
    if recipe["max_minutes"] and not recipe["steps_per_minute"]:
        recipe["steps_per_minute"] = steps_per_minute(step, batches)
    elif not (last or recipe["max_minutes"]):
        say_time(step, batches)
    state, steps = TrainingState(folder, step, images, until_exit), total_steps(recipe, batches.steps_per_epoch)
    start = state.restore(last, batches.steps_per_epoch) if last else 0
    del last

    # --- stopping, log and previews ---
    stop, sampler = until_exit.enter_context(StopRequest(processes)), step.sampler()
    held_out = None
    if lead:
        held_out = held_out_of(recipe, held or held_out_pictures(recipe, images, labels), sampler, step.losses, device)
    del held
    preview = Preview(folder, recipe, sampler, step.diffusion, processes, stop, steps, labels)
    if lead and start < steps:
        state.save_recipe()
    if start and preview.missing(start):
        preview.draw(start)
    log = TrainingLog(folder, recipe, processes, batches.steps_per_epoch, start, steps, held_out)
    until_exit.enter_context(log.bar)

    loop(recipe, batches, step, start, steps, state, log, preview, stop)
    state.writing.wait()
    if lead:
        save_loss_curve(read_log(log.file), folder / "loss.png")
    if start < steps:
        speed = f"{log.images:,} images in {log.took:.0f} s, {log.images / log.took:.1f} images/s"
        print(f"{speed} {step.how()}; saved {state.file}")
    else:
        longer = "raise train_epoch, max_steps or max_minutes to continue"
        print(f"{folder} holds {start:,} steps, and {steps:,} were asked for: {longer}")


def loop(
    recipe: dict, batches: Batches, step: TrainingStep, start: int, steps: int, state: TrainingState, log: TrainingLog,
    preview: Preview, stop: StopRequest,
) -> None:  # fmt: skip
    """The training itself: every step, and what follows it."""
    for batch in batches.steps(start, steps):
        rate = learning_rate(recipe, batch.step, steps)
        losses, norm, taken = step(batch, rate, late=batch.step >= steps // 2)
        log.add(losses, batch.t, norm, taken)

        done, signum = batch.step + 1, stop.agreed()
        ends = signum or done == steps
        saving = ends or preview.due(done) or done % recipe["save_every"] == 0
        if saving or done % recipe["log_every"] == 0:
            log.write(done, rate, with_held_out=saving and not signum)
        if saving and (taken or ends):  # what led to a bad step is not saved over what is good
            state.save(done)
            if preview.due(done) and not signum:
                state.writing.wait()  # so that there is no preview without its checkpoint
                preview.draw(done)
                signum = stop.agreed()
            if signum and done < steps:
                state.writing.wait()
                where = f"after step {done:,}, saved in {state.file}"
                raise Stopped(signum, f"{where}: run the same command again to resume")
            log.restart_clock()


if __name__ == "__main__":
    run(main)
