"""Trains a diffusion model on one data set of config.yaml:   python train_solver.py --data_name Flower102

Run the same command again to resume. On several devices: torchrun --nproc_per_node=4 train_solver.py …
"""

import utils.interruptible  # noqa: F401 - first, so that Ctrl-C ends quietly while the others load

# isort: split
import time
from contextlib import ExitStack
from pathlib import Path

import torch
import yaml
from torch import nn

from datasets import DataError, find_images, find_labels, fit_images
from diffusion import GaussianDiffusion
from diffusion.guidance import with_labels
from files.errors import Stopped, out_of_memory_means
from models import UNet
from runs.config import load_recipe
from runs.network import build, build_diffusion, plan
from training.background import Background
from training.batches import Batches
from training.ema import EMA
from training.held_out import HeldOut
from training.log import TrainingLog
from training.optimizer import LossScale, backward, learning_rate, make_optimizer, update
from training.plan import check_outside, describe, memory_advice, total_steps, with_classes
from training.preview import Preview
from training.processes import Processes, StopRequest
from training.resume import (
    TrainingState,
    alone_in,
    check_same_run,
    find_checkpoint,
    load_pretrained,
    pretrained_recipe,
    save_recipe,
)
from training.speed import steps_per_minute
from utils.command_line import ArgumentParser, run
from utils.device import (
    autocast,
    compile_outcome,
    compiled,
    memory_format,
    pick_device,
    prepare,
    ready_to_sample,
    resolve_precision,
    sampling_precision,
)


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data_name", required=True, metavar="NAME", help="a block of Train_Data in the configuration, such as Digits")
    add(
        "--config",
        type=Path,
        default=Path("config.yaml"),
        metavar="FILE",
        help="the configuration (default: config.yaml)",
    )
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
    plan(recipe)  # what cannot be built ends here, before anything is downloaded
    with Processes(pick_device(args.device)) as processes, ExitStack() as until_exit:
        with processes.first():
            recipe = with_classes(recipe, download=not args.dry_run)
        torch.manual_seed(recipe["seed"])
        model, diffusion = (plan(recipe), build_diffusion(recipe)) if args.dry_run else build(recipe)
        print(yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None).rstrip())
        if args.dry_run:
            dry_run(recipe, model, diffusion, processes)
        else:
            train(recipe, model, diffusion, processes, args.resume, until_exit)


def dry_run(recipe: dict, model: nn.Module, diffusion: GaussianDiffusion, processes: Processes) -> None:
    """Prints the plan of a training; nothing is written or downloaded."""
    try:
        found = find_images(recipe["dataset"], recipe["data_path"], recipe["split"], download=False)
        check_outside(Path(recipe["save_dir"], recipe["pth_save_name"]), recipe, found)
        images = len(found)
    except DataError as error:
        print(f"data        {error}")
        images = None
    print(describe(recipe, model, diffusion, images, processes.world, processes.device))


def train(
    recipe: dict, model: nn.Module, diffusion: GaussianDiffusion, processes: Processes, resume: str,
    until_exit: ExitStack,
) -> None:  # fmt: skip
    """Trains to the last step of the recipe: a new run, or from the last checkpoint of this one.

    resume: "auto" or "never". until_exit: holds the lock on the folder, the signal handlers and the progress bar.
    """
    folder = Path(recipe["save_dir"]) / recipe["pth_save_name"]
    checkpoint = folder / f"{recipe['pth_save_name']}.pt"
    device, lead = processes.device, processes.rank == 0  # of several processes only the lead writes files
    prepare(device, recipe["deterministic"], ours=isinstance(model, UNet))

    # --- the pictures and the checkpoint ---
    with processes.first():
        found = find_images(recipe["dataset"], recipe["data_path"], recipe["split"])
        check_outside(folder, recipe, found)
        if lead:
            until_exit.enter_context(alone_in(folder))
        writing = until_exit.enter_context(Background(threaded=device.type == "cuda"))
        last = find_checkpoint(checkpoint, resume)
        if last:
            recipe = recipe | {"steps_per_minute": recipe["steps_per_minute"] or last["recipe"].get("steps_per_minute")}
            check_same_run(last, recipe)
        data = (found, recipe["data_path"], recipe["split"])
        images, rows = fit_images(*data, recipe["image_size"], recipe["image_channel"])
        class_labels = None
        if recipe["num_classes"]:
            class_labels = find_labels(recipe["dataset"], *data, recipe["class_names"])[0][rows]
        del found
        print(describe(recipe, model, diffusion, len(images), processes.world, device))
    batches = Batches(images, recipe, device, processes.rank, processes.world, class_labels)

    # --- the network, its average and the optimizer ---
    if recipe["init_from"] and not last:
        load_pretrained(model, recipe)
    precision = resolve_precision(recipe["precision"], device)
    model, diffusion = model.to(device, memory_format=memory_format(device, precision)), diffusion.to(device)
    ema, optimizer, scale = EMA(model, recipe["ema_decay"]), make_optimizer(model, recipe), LossScale(device, precision)
    parallel = processes.parallel(model.train())
    network = compiled(parallel, recipe["compile"], device)
    if recipe["max_minutes"] and not recipe["steps_per_minute"]:
        with out_of_memory_means(memory_advice(recipe, device)):
            speed = steps_per_minute(recipe, network, diffusion, ema, optimizer, batches, processes, precision)
        recipe = recipe | {"steps_per_minute": speed}
    steps = total_steps(recipe, batches.steps_per_epoch)
    state = TrainingState(checkpoint, recipe, model, ema.model, optimizer, scale, processes, len(images), writing)
    start = state.restore(last) if last else 0
    del last

    def stop_if(signum: int, done: int) -> None:
        if signum:
            writing.wait()
            how = "run the same command again" + " without --resume" * (resume == "never")
            raise Stopped(signum, f"after step {done:,}, saved in {checkpoint}: {how} to resume")

    # --- stopping, log and previews ---
    stop = StopRequest(processes)
    sampler = ready_to_sample(ema.model, device, sampling_precision(recipe["precision"], device, recipe["objective"]))
    held_out = HeldOut(recipe, images, sampler, diffusion, stop, class_labels) if lead else None
    until_exit.enter_context(stop)
    log = TrainingLog(folder, recipe, processes, batches.steps_per_epoch, start, steps, held_out)
    until_exit.enter_context(log)
    preview = Preview(folder, recipe, sampler, diffusion, processes, stop, steps, class_labels)
    if lead and start < steps:
        save_recipe(folder / "recipe.yaml", recipe)
    if start and preview.missing(start):
        preview.draw(start)
        stop_if(stop.agreed() if start < steps else 0, start)

    # --- the loop ---
    parts, saving, drawing = recipe["gradient_accumulation"], False, False
    began = warm = time.monotonic()
    for batch in batches.steps(start, steps):
        with out_of_memory_means(memory_advice(recipe, device)):
            optimizer.zero_grad(set_to_none=True)
            losses = []
            for i, (x_start, t, noise, labels) in enumerate(batch.split(parts), 1):
                with processes.sync_gradients(parallel, now=i == parts):
                    with autocast(precision, device):
                        losses.append(diffusion.training_losses(with_labels(network, labels), x_start, t, noise))
                    backward(losses[-1].mean() / parts, scale)
            rate, overflow_is_normal = learning_rate(recipe, batch.step, steps), scale.is_large()
            norm, taken = update(optimizer, rate, recipe["grad_clip"], scale)
            ema.update(batch.step, taken)
        log.add(torch.cat(losses).detach(), batch.t, norm, taken, overflow_is_normal)
        if batch.step == start:  # the first step may compile for minutes, and does not count as speed
            warm, log.compiled = time.monotonic(), compile_outcome() if network is not parallel else None

        done, signum = batch.step + 1, stop.agreed()
        drawing = drawing or preview.due(done)  # a preview has its checkpoint, which can draw it again
        saving = saving or drawing or done % recipe["save_every"] == 0 or signum != 0
        if saving or done % recipe["log_every"] == 0:
            writing.check()
            line = log.write(done, rate, with_held_out=saving)
        if saving and log.last_was_bad():
            if done == steps:
                log.end_at_bad_steps(done)
            continue  # what led to a bad step is not saved over what is good: after the next good one
        if saving:
            with log.paused():
                state.save(done, line["loss"])
                if drawing and not signum:
                    writing.wait()  # so that there is no preview without its checkpoint
                    preview.draw(done)
                    signum = stop.agreed()
            saving = drawing = False
        stop_if(signum if done < steps else 0, done)

    # --- the end ---
    writing.wait()
    log.save_curve(folder / "loss.png")
    if start >= steps:
        longer = "raise train_epoch, max_steps or max_minutes"
        print(f"{checkpoint} has done all of its {steps:,} steps: {longer} to continue")
        return
    seen, seconds = (steps - start) * recipe["batch_size"], time.monotonic() - began
    timed, since = (seen - recipe["batch_size"], warm) if steps - start > 1 else (seen, began)
    how = {None: "", True: ", compiled", False: "; torch.compile failed, so parts ran uncompiled"}[log.compiled]
    rate = timed / (time.monotonic() - since)
    print(
        f"{seen:,} images in {seconds:.0f} s, {rate:.1f} images/s on {device} in {precision}{how}; saved {checkpoint}"
    )


if __name__ == "__main__":
    run(main)
