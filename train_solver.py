"""Trains a diffusion model on one data set of config.yaml:   python train_solver.py --data_name Flower102

The same command, run again, goes on where it stopped.
"""

import time
from pathlib import Path

import torch
import yaml
from tqdm import tqdm

from datasets import DataError, find_images, load_images
from diffusion import SampleSpec
from utils.batches import Batches, seed_of
from utils.checkpoint import build, check_same_run, find_checkpoint, load_into, save_checkpoint, save_recipe
from utils.config import load_recipe
from utils.device import autocast, pick_device
from utils.ema import EMA
from utils.errors import ArgumentParser, CheckpointError, run
from utils.images import grid_columns, save_grid
from utils.plan import describe, total_steps


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_name", required=True, metavar="NAME", help="a block of Train_Data, such as Digits")
    parser.add_argument("--config", type=Path, default=Path("config.yaml"), metavar="FILE")
    parser.add_argument("--data_path", metavar="P", help="where the data are, or go; over the configuration's")
    parser.add_argument("--save_dir", metavar="D", help="where runs are kept; over the configuration's")
    parser.add_argument("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="over any key")
    parser.add_argument(
        "--resume", default="auto", metavar="auto|never|PATH", help="auto: go on where this run stopped"
    )
    parser.add_argument("--dry_run", action="store_true", help="print what would be trained, and stop")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    paths = {"data_path": args.data_path, "save_dir": args.save_dir}
    recipe = load_recipe(args.config, args.data_name, args.set, {k: v for k, v in paths.items() if v})
    torch.manual_seed(recipe["seed"])
    model, diffusion = build(recipe)
    print(yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None).rstrip())

    data = (recipe["dataset"], recipe["data_path"], recipe["split"])
    if args.dry_run:
        try:
            images = len(find_images(*data, download=False))
        except DataError as error:
            print(f"data        {error}")
            images = None
        print(describe(recipe, model, diffusion, images))
        return

    checkpoint = Path(recipe["save_dir"]) / recipe["pth_save_name"] / f"{recipe['pth_save_name']}.pt"
    resume = find_checkpoint(checkpoint, args.resume)
    if resume:
        check_same_run(resume, recipe)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    device = pick_device()
    images = load_images(*data, recipe["image_size"], recipe["image_channel"])
    print(describe(recipe, model, diffusion, len(images)))
    batches = Batches(images, recipe["batch_size"], recipe["horizontal_flip"], recipe["seed"], device)

    model, diffusion = model.to(device), diffusion.to(device)
    ema = EMA(model, recipe["ema_decay"])
    optimizer = torch.optim.Adam(
        model.parameters(), lr=recipe["learning_rate"], betas=(recipe["Adam_beta1"], recipe["Adam_beta2"])
    )
    start = load_into(resume, recipe, model, ema.model, optimizer) if resume else 0
    if resume and resume.get("images") != len(images):
        print(f"the pictures were {resume.get('images')} and are {len(images)}: from here on the run is another")
    del resume
    steps = total_steps(recipe, batches.steps_per_epoch)
    if start >= steps:
        print(f"{checkpoint} has done all of its {steps:,} steps: raise train_epoch or max_steps to go on")
        return
    save_recipe(checkpoint.parent / "recipe.yaml", recipe)

    def save(step: int) -> None:
        if not all(p.isfinite().all() for p in ema.model.parameters()):
            raise CheckpointError(
                f"the weights are no longer finite at step {step}; they were not saved: lower learning_rate, set "
                "grad_clip or use precision=fp32, and go on from the last good checkpoint"
            )
        weights = {"model": model.state_dict(), "ema": ema.model.state_dict()}
        content = {
            "recipe": recipe,
            "step": step,
            "images": len(images),
            **weights,
            "optimizer": optimizer.state_dict(),
        }
        save_checkpoint(checkpoint, content, recipe["keep_checkpoints"])

    def preview(step: int) -> None:
        C, S = recipe["image_channel"], recipe["image_size"]
        generator = torch.Generator().manual_seed(recipe["seed"])  # the same noise for every preview
        noise = torch.randn(recipe["sample_num"], C, S, S, generator=generator).to(device)
        x = diffusion.sample(ema.model, noise, SampleSpec.parse(recipe["preview_info"]), generator)
        save_grid(x, checkpoint.parent / f"preview_{step:08d}.png", grid_columns(len(x)))

    network = torch.compile(model) if recipe["compile"] else model
    model.train()
    loss_sum, loss_count, began = torch.zeros((), device=device), 0, time.monotonic()
    with tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True) as bar:
        for step in range(start, steps):
            torch.manual_seed(seed_of(recipe["seed"], step))  # all that is random in this step follows from it
            x_start = batches.batch(step)
            t = torch.randint(diffusion.timestep_num, (len(x_start),), device=device)
            noise = torch.randn_like(x_start)
            with autocast(recipe["precision"], device):
                loss = diffusion.training_losses(network, x_start, t, noise).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if recipe["grad_clip"] is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe["grad_clip"])
            optimizer.step()
            ema.update(model, step)

            loss_sum, loss_count, done = loss_sum + loss.detach(), loss_count + 1, step + 1
            bar.update()
            if done % 50 == 0:
                bar.set_postfix(loss=f"{loss_sum.item() / loss_count:.4f}")
            if done % batches.steps_per_epoch == 0 or done == steps:
                epoch = -(-done // batches.steps_per_epoch)
                bar.write(f"epoch {epoch}  step {done}  mean loss {loss_sum.item() / loss_count:.4f}")
                loss_sum, loss_count = torch.zeros_like(loss_sum), 0
            if done % recipe["save_every"] == 0 or done == steps:
                save(done)
            if done % recipe["sample_every"] == 0 or done == steps:
                preview(done)
    seconds = time.monotonic() - began
    seen = (steps - start) * recipe["batch_size"]
    print(f"{seen:,} images in {seconds:.0f} s, {seen / seconds:.1f} images/s on {device}; saved {checkpoint}")


if __name__ == "__main__":
    run(main)
