"""The README of an exported folder: what it is, what it was trained on and how, and how to use it."""

from pathlib import Path

from diffusion import SampleNoise, SampleSpec
from utils.checkpoint import Run
from utils.images import save_grid
from utils.metrics import read_metrics

SPEC, COUNT, COLUMNS = SampleSpec.parse("DPMpp_20_0p0"), 32, 8
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

Unconditional image diffusion: {colour} pictures of {size}x{size} pixels, like those of {data}.

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


def write_card(run: Run, folder: Path, name: str, metrics: Path) -> None:
    """Writes README.md and samples.png. metrics: the training's metrics.jsonl, for the losses, where there is one."""
    recipe = run.recipe
    C, S = recipe["image_channel"], recipe["image_size"]
    noise = SampleNoise(0, range(COUNT))
    spec = SampleSpec(SPEC.method, min(SPEC.steps, recipe["timestep_num"]), SPEC.eta)
    x_T = noise.draw((COUNT, C, S, S), next(run.model.parameters()).dtype, "cpu")
    save_grid(run.diffusion.sample(run.model, x_T, spec, noise), folder / "samples.png", COLUMNS)
    facts = {
        "name": name,
        "colour": "RGB" if C == 3 else "grey",
        "size": S,
        "data": f"{recipe['data_name']} ({recipe['split']})",
        "count": COUNT,
        "spec": spec,
        "steps": min(50, recipe["timestep_num"]),
        "rows": "\n".join(f"| {what} | {value} |" for what, value in _rows(run, metrics)),
    }
    (folder / "README.md").write_text(CARD.format(**facts), encoding="utf-8")


def _rows(run: Run, metrics: Path) -> list[tuple[str, str]]:
    recipe = run.recipe
    rows = [
        ("network", f"UNet2DModel, {sum(p.numel() for p in run.model.parameters()):,} parameters"),
        ("predicts", f"{PREDICTS[recipe['objective']]}, {recipe['loss_type'].upper()} loss"),
        ("diffusion", f"{recipe['timestep_num']} timesteps, {recipe['beta_schedule']} betas"),
    ]
    if run.step:
        seen = f"{run.step:,} steps of {recipe['batch_size']}: {run.step * recipe['batch_size']:,} pictures seen"
        averaged = (
            f"averaged (EMA, decay {recipe['ema_decay']})" if run.weights == "ema" else "as the last step left them"
        )
        rows += [("trained", f"{seen}, Adam, learning rate {recipe['learning_rate']:g}"), ("weights", averaged)]
        lines = read_metrics(metrics) if metrics.exists() else []
        for key, what in (("loss", "loss in training"), ("held_out_loss", "loss of held-out pictures")):
            told = [line[key] for line in lines if line["step"] <= run.step and line.get(key) is not None]
            rows += [(what, f"{told[-1]:.4f}")] if told else []
    return rows
