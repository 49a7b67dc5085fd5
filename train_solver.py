"""Trains a diffusion model on one data set of config.yaml:   python train_solver.py --data_name Flower102

The same command, run again, goes on where it stopped. On several devices: torchrun --nproc_per_node=4 train_solver.py …
"""

import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
import yaml
from torch import nn
from tqdm import tqdm

from datasets import DataError, find_images, load_images
from diffusion import GaussianDiffusion, SampleSpec
from utils.batches import Batches, seed_of
from utils.checkpoint import alone_in, build, load_run, load_weights, save_checkpoint, save_recipe
from utils.config import load_recipe
from utils.device import autocast, compiled, memory_format, pick_device, prepare, ready_to_sample, sampling_precision
from utils.ema import EMA
from utils.errors import ArgumentParser, Stopped, out_of_memory_means, run
from utils.held_out import HeldOut
from utils.images import grid_columns, save_grid
from utils.metrics import Metrics, read_metrics, save_loss_curve, summary
from utils.optimizer import backward, learning_rate, make_optimizer, update
from utils.plan import describe, memory_advice, total_steps
from utils.processes import Processes
from utils.resume import check_same_run, find_checkpoint, load_into, pretrained_recipe
from utils.stop import StopRequest


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_name", required=True, metavar="NAME", help="a block of Train_Data, such as Digits")
    parser.add_argument("--config", type=Path, default=Path("config.yaml"), metavar="FILE")
    parser.add_argument("--data_path", metavar="P", help="where the data are, or go; over the configuration's")
    parser.add_argument("--save_dir", metavar="D", help="where runs are kept; over the configuration's")
    parser.add_argument("--init_from", metavar="P", help="weights to start from, with their network and diffusion")
    parser.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="over any key")
    parser.add_argument(
        "--resume", default="auto", metavar="auto|never|PATH", help="auto: go on where this run stopped"
    )
    parser.add_argument("--dry_run", action="store_true", help="print what would be trained, and stop")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    paths = {key: getattr(args, key) for key in ("data_path", "save_dir", "init_from") if getattr(args, key)}
    recipe = load_recipe(args.config, args.data_name, args.set, paths, pretrained_recipe)
    torch.manual_seed(recipe["seed"])
    model, diffusion = build(recipe)
    with Processes(pick_device()) as processes, out_of_memory_means(memory_advice(recipe)), ExitStack() as stack:
        print(yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None).rstrip())
        if args.dry_run:
            dry_run(recipe, model, diffusion, processes)
        else:
            train(recipe, model, diffusion, processes, args.resume, stack)


def dry_run(recipe: dict, model: nn.Module, diffusion: GaussianDiffusion, processes: Processes) -> None:
    try:
        images = len(find_images(recipe["dataset"], recipe["data_path"], recipe["split"], download=False))
    except DataError as error:
        print(f"data        {error}")
        images = None
    print(describe(recipe, model, diffusion, images, processes.world))


def train(
    recipe: dict, model: nn.Module, diffusion: GaussianDiffusion, processes: Processes, resume: str, stack: ExitStack
) -> None:
    folder = Path(recipe["save_dir"]) / recipe["pth_save_name"]
    checkpoint = folder / f"{recipe['pth_save_name']}.pt"
    device, lead = processes.device, processes.rank == 0  # of several processes only the first one writes
    prepare(device)
    with processes.first():
        if lead:
            stack.enter_context(alone_in(folder))
        last = find_checkpoint(checkpoint, resume)
        if last:
            check_same_run(last, recipe)
        data = (recipe["dataset"], recipe["data_path"], recipe["split"])
        images = load_images(*data, recipe["image_size"], recipe["image_channel"])
        print(describe(recipe, model, diffusion, len(images), processes.world))
    batches = Batches(images, recipe, device, processes.rank, processes.world)

    if recipe["init_from"] and not last:
        load_weights(model, load_run(recipe["init_from"]).model.state_dict(), recipe["init_from"])
    model, diffusion = model.to(device, memory_format=memory_format(device)), diffusion.to(device)
    ema, optimizer = EMA(model, recipe["ema_decay"]), make_optimizer(model, recipe)
    circumstances = {"images": len(images), "processes": processes.world}
    start = load_into(last, model, ema.model, optimizer, circumstances) if last else 0
    del last
    steps = total_steps(recipe, batches.steps_per_epoch)
    parallel = processes.parallel(model.train())
    network = compiled(parallel, recipe["compile"], device)
    sampler = ready_to_sample(ema.model, device, sampling_precision(recipe["precision"], device, recipe["objective"]))
    held_out = HeldOut(recipe, images, device) if lead else None
    stop, metrics = stack.enter_context(StopRequest(processes)), Metrics(folder, recipe, processes, start)
    bar = stack.enter_context(tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True, disable=not lead))
    if lead and start < steps:
        save_recipe(folder / "recipe.yaml", recipe)

    @metrics.paused()
    def save(step: int) -> None:
        content = {"recipe": recipe, "step": step, **circumstances, "optimizer": optimizer.state_dict()}
        content |= {"model": model.state_dict(), "ema": ema.model.state_dict()}
        save_checkpoint(checkpoint, content, recipe["keep_checkpoints"])

    @metrics.paused()
    @out_of_memory_means(f"a preview draws sample_num={recipe['sample_num']} pictures at a time: set a smaller one")
    def preview(step: int) -> None:
        C, S = recipe["image_channel"], recipe["image_size"]
        generator = torch.Generator().manual_seed(recipe["seed"])  # the same noise for every preview
        noise = torch.randn(recipe["sample_num"], C, S, S, generator=generator).to(device)
        for frame in diffusion.sample_progressive(sampler, noise, SampleSpec.parse(recipe["preview_info"]), generator):
            x = frame.sample
            if stop.signum:
                return
        save_grid(x, picture_of(step), grid_columns(len(noise)))

    def picture_of(step: int) -> Path | None:
        """Where its preview goes, if it gets one."""
        shown = (step % recipe["sample_every"] == 0 or step >= steps) and lead
        return folder / f"preview_{step:08d}.png" if shown else None

    if start and (picture := picture_of(start)) and not picture.exists():  # it was stopped while drawing
        preview(start)
    began, parts, generator = time.monotonic(), recipe["gradient_accumulation"], torch.Generator(device)
    for step, pixels in enumerate(batches.pixels(start, steps), start):
        generator.manual_seed(seed_of(recipe["seed"], step))  # all that is random in this step follows from it,
        torch.manual_seed(seed_of(recipe["seed"], step, processes.rank))  # and dropout from this
        x_start = batches.prepare(pixels, generator)
        shape = (recipe["batch_size"], *x_start.shape[1:])
        t = torch.randint(diffusion.timestep_num, shape[:1], generator=generator, device=device)[batches.share]
        noise = torch.randn(shape, generator=generator, device=device)[batches.share]

        optimizer.zero_grad(set_to_none=True)
        losses = []
        for i, part in enumerate(zip(x_start.chunk(parts), t.chunk(parts), noise.chunk(parts), strict=True), 1):
            with processes.quiet(parallel, last=i == parts):
                with autocast(recipe["precision"], device):
                    losses.append(diffusion.training_losses(network, *part))
                backward(losses[-1].mean() / parts)
        rate = learning_rate(recipe, step, steps)
        norm, taken = update(optimizer, rate, recipe["grad_clip"])
        ema.update(step, taken)
        metrics.add(torch.cat(losses).detach(), t, norm, taken)
        bar.update()

        done, signum = step + 1, stop.agreed()
        saving = done % recipe["save_every"] == 0 or done == steps or signum != 0
        if saving or done % recipe["log_every"] == 0:
            more = partial(held_out.loss, sampler, diffusion, stop) if saving and lead and not signum else dict
            line = metrics.log(done, batches.steps_per_epoch, rate, more)
            if saving or line["skipped"]:
                bar.write(summary(line))
            bar.set_postfix(loss=line["loss"])
        if saving and lead:
            save(done)
        if signum and done < steps:
            how = "the same command goes on" if resume == "auto" else "the same command without --resume goes on"
            raise Stopped(signum, f"after step {done:,}, which {checkpoint} holds: {how}")
        if picture_of(done):
            preview(done)
    if lead:
        save_loss_curve(read_metrics(metrics.file), folder / "loss.png")
    if start >= steps:
        print(f"{checkpoint} has done all of its {steps:,} steps: raise train_epoch or max_steps to go on")
        return
    seconds = time.monotonic() - began
    seen = (steps - start) * recipe["batch_size"]
    print(f"{seen:,} images in {seconds:.0f} s, {seen / seconds:.1f} images/s on {device}; saved {checkpoint}")


if __name__ == "__main__":
    run(main)
