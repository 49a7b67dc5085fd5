"""The README of an exported folder: what the network is, how it was trained and how to use it."""

import json
from dataclasses import replace
from pathlib import Path, PureWindowsPath

from datasets import picture_shape
from diffusion import SampleSpec
from files.atomic import write_file
from runs.labels import class_names
from runs.recipe import DIFFUSION_KEYS
from runs.run import Run
from sharing.diffusers_scheduler import TRIED
from utils.device import pick_device
from utils.pictures import save_grid

SPEC, COUNT, COLUMNS = SampleSpec.parse("DPMpp_20_0p0"), 16, 8
# the pipelines of diffusers do not pass labels on to the network
BIND = """labels = torch.arange(16) % {classes}  # a class for each picture
pipeline.unet.forward = partial(pipeline.unet.forward, class_labels=labels)
"""
TRAINING = "optimizer learning_rate lr_schedule warmup_steps grad_clip horizontal_flip label_dropout learned_guidance"

CARD = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags:
- diffusers
- unconditional-image-generation
- diffusion-models
---

# {name}

{kind} image diffusion: {colour} pictures of {width}x{height} pixels{like}.

![samples](samples.png)

{count} samples, `{spec}`, seed 0, in Diffusion.pytorch.

| | |
| --- | --- |
{rows}

## How to use

```python
{imports}from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained("{name}")  # this folder, or USER/NAME once it is on the hub
{bind}pictures = pipeline(batch_size=16, num_inference_steps={steps}, use_clipped_model_output=True).images
```

`DDPMPipeline` loads it too. `use_clipped_model_output` makes DDIM derive the noise from the clipped prediction, as in
the previews of the training. Other schedulers take the settings of this one: `from_config(pipeline.scheduler.config)`.
Tried are {tried}; some others do not clip the prediction, and their samples leave the range.

`recipe.json` holds the complete recipe; `convert.py` of Diffusion.pytorch converts this folder back.
"""


def write_card(run: Run, folder: Path, name: str) -> None:
    """Writes README.md and samples.png."""
    recipe = run.recipe
    (channels, height, width), T = picture_shape(recipe["image_size"], recipe["image_channel"]), recipe["timestep_num"]
    spec = replace(SPEC, steps=min(SPEC.steps, T))
    samples = run.to(pick_device()).sample(COUNT, spec, batch_size=8, guidance=1)  # as the code in the card
    save_grid(samples, folder / "samples.png", COLUMNS)
    classes = len(class_names(recipe))
    card = CARD.format(
        name=name, count=COUNT, spec=spec, width=width, height=height, colour="RGB" if channels == 3 else "grey",
        kind="Class-conditional" if classes else "Unconditional",
        imports="from functools import partial\n\nimport torch\n" if classes else "",
        bind=BIND.format(classes=classes) if classes else "",
        like=f", as in {recipe['data_name']} ({recipe['split']})" if run.step else "",
        steps=next(n for n in range(min(50, T), T + 1) if T % n == 0),  # diffusers' DDIM needs a divisor
        tried=", ".join(TRIED), rows="\n".join(f"| {what} | {value} |" for what, value in _rows(run)),
    )  # fmt: skip
    write_file(folder / "README.md", card)


def _rows(run: Run) -> list[tuple[str, str]]:
    recipe, names = run.recipe, class_names(run.recipe)
    rows = [("network", f"UNet2DModel, {sum(p.numel() for p in run.model.parameters()):,} parameters")]
    if names:
        rows += [("labels", ", ".join(f"{i} {name}" for i, name in enumerate(names)) + f"; {len(names)}: no label")]
    keys = [*(key for key in DIFFUSION_KEYS if key != "betas"), *(TRAINING.split() if run.step else [])]
    rows += [("settings", " ".join(f"`{key}={json.dumps(recipe[key])}`".replace('"', "") for key in keys))]
    if recipe["betas"]:
        rows += [("betas", "its own: those of recipe.json, and not of beta_schedule")]
    if not run.step:
        return [*rows, ("trained", "elsewhere; the details are unknown")]
    seen = f"{run.step:,} steps of {recipe['batch_size']}: {run.step * recipe['batch_size']:,} pictures seen"
    rows += [("trained", seen + (f", from {PureWindowsPath(recipe['init_from']).name}" if recipe["init_from"] else ""))]
    averaged = f"averaged, decay {recipe['ema_decay']}"
    return [*rows, ("weights", averaged if run.weights == "ema" else "of the last step")]
