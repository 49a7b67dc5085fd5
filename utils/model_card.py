"""The README of an exported folder: what it is, what it was trained on and how, and how to use it."""

from pathlib import Path

import torch
from tqdm import tqdm

from diffusion import SampleNoise, SampleSpec
from utils.checkpoint import Run
from utils.device import pick_device, ready_to_sample
from utils.images import save_grid
from utils.metrics import read_metrics

SPEC, COUNT, COLUMNS = SampleSpec.parse("DPMpp_20_0p0"), 16, 8
PREDICTS = {"pred_noise": "the noise", "pred_x0": "the picture (x_start)", "pred_v": "v"}

CARD = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags:
- diffusers
- unconditional-image-generation
- diffusion-models
---

# {name}

Unconditional image diffusion: {colour} pictures of {size}x{size} pixels{like}.

![samples](samples.png)

{count} samples, `{spec}`, seed 0, in Diffusion.pytorch.

| | |
| --- | --- |
{rows}

## How to use

```python
from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained("{name}")  # this folder, or USER/NAME once it is on the hub
pictures = pipeline(batch_size=16, num_inference_steps={steps}, use_clipped_model_output=True).images
```

`DDPMPipeline` loads it too. `use_clipped_model_output` makes DDIM derive the noise from the clipped prediction, as in
training's previews. `recipe.json` has everything that Diffusion.pytorch knows of the run; its `convert.py` reads this
folder back.
"""


def write_card(run: Run, folder: Path, name: str, metrics: Path | None) -> None:
    """Writes README.md and samples.png. metrics: the training's metrics.jsonl, for the losses, where it may be."""
    recipe = run.recipe
    C, S = recipe["image_channel"], recipe["image_size"]
    spec = SampleSpec(SPEC.method, min(SPEC.steps, recipe["timestep_num"]), SPEC.eta)
    device, parts = pick_device(), []
    network = ready_to_sample(run.model, device, "fp32")
    for indices in tqdm(torch.arange(COUNT).split(8), desc="samples for the model card", leave=False):
        noise = SampleNoise(0, indices.tolist())
        parts.append(run.diffusion.sample(network, noise.draw((8, C, S, S), torch.float32, device), spec, noise))
    save_grid(torch.cat(parts), folder / "samples.png", COLUMNS)
    facts = {
        "name": name,
        "colour": "RGB" if C == 3 else "grey",
        "size": S,
        "like": f", like those of {recipe['data_name']} ({recipe['split']})" if run.step else "",
        "count": COUNT,
        "spec": spec,
        "steps": min(50, recipe["timestep_num"]),
        "rows": "\n".join(f"| {what} | {value} |" for what, value in _rows(run, metrics)),
    }
    (folder / "README.md").write_text(CARD.format(**facts), encoding="utf-8")


def _rows(run: Run, metrics: Path | None) -> list[tuple[str, str]]:
    recipe = run.recipe
    rows = [
        ("network", f"UNet2DModel, {sum(p.numel() for p in run.model.parameters()):,} parameters"),
        ("predicts", PREDICTS[recipe["objective"]]),
        ("diffusion", f"{recipe['timestep_num']} timesteps, {recipe['beta_schedule']} betas"),
    ]
    if not run.step:
        return [*rows, ("trained", "elsewhere; nothing more is known here")]
    seen = f"{run.step:,} steps of {recipe['batch_size']}: {run.step * recipe['batch_size']:,} pictures seen"
    averaged = run.weights == "ema"
    how = f"{recipe['loss_type'].upper()} loss, Adam, learning rate {recipe['learning_rate']:g}"
    rows += [("trained", f"{seen}, {how}")]
    rows += [("started from", Path(recipe["init_from"]).name)] if recipe["init_from"] else []
    rows += [("weights", f"averaged, decay {recipe['ema_decay']}" if averaged else "as the last step left them")]
    lines = read_metrics(metrics) if metrics and metrics.exists() else []
    names = {"loss": "loss in training"} | ({"held_out_loss": "loss of held-out pictures"} if averaged else {})
    for key, what in names.items():
        told = [line[key] for line in lines if line["step"] <= run.step and line.get(key) is not None]
        rows += [(what, f"{told[-1]:.4f}")] if told else []
    return rows
