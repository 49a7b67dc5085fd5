"""Runs as diffusers' pipelines, and back: model_index.json, unet/, scheduler/, and recipe.json, which is ours.

    objective -> prediction_type     betas -> beta_schedule or trained_betas     clip_denoised -> clip_sample

Evenly spaced timesteps as ours are called "trailing" there, and the variance of our DDPM "fixed_small".
"""

import json
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion import GaussianDiffusion
from diffusion.schedule import BETA_SCHEDULES, MAX_BETA
from models import UNet
from models.diffusers_unet import (
    arguments,
    configuration,
    diffusers,
    is_ours,
    keywords_of,
    paired_tensors,
    qkv_biases,
    settings,
)
from utils.checkpoint import Run, build, load_weights
from utils.errors import CheckpointError, ConfigError
from utils.recipe import DIFFUSION_KEYS, MODEL_KEYS, plain_recipe
from utils.weights import check_facts, facts_of

PREDICTION_TYPES = {"pred_noise": "epsilon", "pred_x0": "sample", "pred_v": "v_prediction"}
OBJECTIVES = {theirs: ours for ours, theirs in PREDICTION_TYPES.items()}
CLOSE = 1e-5  # of network outputs, float32: rounding, in another order of sums, leaves 1e-6
RECIPE = "recipe.json"
PIPELINES, SCHEDULERS = ("DDPMPipeline", "DDIMPipeline"), ("DDPMScheduler", "DDIMScheduler")


def need_diffusers() -> None:
    """ConfigError where it is missing."""
    try:
        diffusers()
    except ValueError as error:
        raise ConfigError(f"folders: {error}") from error


def export_folder(run: Run, folder: Path) -> None:
    """Writes a folder that DDPMPipeline and DDIMPipeline load, once its network is seen to compute what ours does.

    Raises ConfigError for what UNet2DModel cannot say, CheckpointError if the outputs differ by more than 1e-5.
    The folder is the caller's to throw away then.
    """
    try:
        unet = to_unet2d(run)
        scheduler = diffusers().DDPMScheduler(**scheduler_configuration(run.recipe, run.diffusion))
    except ValueError as error:
        raise ConfigError(f"this network cannot be exported: {error}") from error
    diffusers().DDPMPipeline(unet, scheduler).save_pretrained(folder)
    facts = facts_of(run.recipe, run.weights, run.step)
    (folder / RECIPE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    compare(run.model, load_unet(folder / "unet"), run.recipe)


def import_folder(folder: Path) -> Run:
    """The run in such a folder, or in one with unet and scheduler side by side, as older ones are.

    Where the network is not our UNet, the recipe's diffusers_unet says what it is. CheckpointError, in one line and by
    name, for a folder that is damaged or of another kind, and for what cannot be represented.
    """
    unet, scheduler = _components(folder)
    theirs, config = load_unet(unet), _json(scheduler / "scheduler_config.json")
    if config.get("_class_name") not in SCHEDULERS:
        raise CheckpointError(f"{scheduler} has a {config.get('_class_name')}, and not a {' or '.join(SCHEDULERS)}")
    with _refused(folder):
        ours, keys = is_ours(theirs), keywords_of(dict(theirs.config))
        if not ours:
            keys["diffusers_unet"] = settings(dict(theirs.config))
        keys |= diffusion_keys(getattr(diffusers(), config["_class_name"]).from_config(config))
        recipe, weights, step = plain_recipe(folder.resolve().name, loss_type="l2", **keys), "raw", 0
    if (folder / RECIPE).exists():
        facts = check_facts((folder / RECIPE).read_text(encoding="utf-8"), folder / RECIPE)
        weights, step = facts["weights"], facts["step"]
        if _canonical(facts["recipe"]) != _canonical(recipe):
            raise CheckpointError(f"{folder}: {RECIPE} says otherwise than the configurations of unet and scheduler do")
        recipe = facts["recipe"]
    with _refused(folder):
        model, diffusion = build(recipe)
        if ours:
            with torch.no_grad():
                for tensor, peer in paired_tensors(model, theirs):
                    tensor.copy_(peer)
        else:
            model.unet.load_state_dict(theirs.state_dict())
        load_weights(model, model.state_dict(), folder)  # are they finite?
        compare(model.eval(), theirs, recipe)
    return Run(model, diffusion, recipe, step, weights)


def to_unet2d(run: Run) -> nn.Module:
    """The run's network as a UNet2DModel."""
    if not isinstance(run.model, UNet):
        return run.model.unet
    unet = diffusers().UNet2DModel(**configuration({key: run.recipe[key] for key in MODEL_KEYS}))
    with torch.no_grad():
        for ours, theirs in paired_tensors(run.model, unet):
            theirs.copy_(ours)
        for bias in qkv_biases(unet):
            bias.zero_()
    return unet.eval()


def load_unet(folder: Path) -> nn.Module:
    """The UNet2DModel in a folder, in eval mode, with nothing missing and nothing left over, or CheckpointError."""
    config = _json(folder / "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise CheckpointError(f"{folder}: its network is {config.get('_class_name')}, not UNet2DModel")
    with _refused(folder):
        if unknown := sorted({key for key in config if not key.startswith("_")} - set(arguments())):
            raise CheckpointError(f"{folder}/config.json: this diffusers does not know {', '.join(unknown)}")
        unet, told = diffusers().UNet2DModel.from_pretrained(
            str(folder),
            low_cpu_mem_usage=False,
            output_loading_info=True,
            use_safetensors=any(folder.glob("*.safetensors")) or not any(folder.glob("*.bin")),
        )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := [str(name) for name in told[what]]:
            raise CheckpointError(f"{folder}: {what.removesuffix('_keys')} tensor {names[0]}" + _more(names))
    return unet.float().eval()


def compare(ours: nn.Module, theirs: nn.Module, recipe: dict) -> None:
    """CheckpointError unless both networks say the same of random pictures, at most 1e-5 apart."""
    generator = torch.Generator().manual_seed(0)
    T, C, S = recipe["timestep_num"], recipe["image_channel"], recipe["image_size"]
    x, t = torch.randn(4, C, S, S, generator=generator), torch.linspace(0, T - 1, 4).long()
    with torch.inference_mode():
        apart = (ours(x, t) - theirs(x, t).sample).abs().max().item()
    if not apart <= CLOSE:
        raise CheckpointError(f"the two networks' outputs are {apart:.1e} apart, and should be at most {CLOSE:.0e}")
    print(f"our network and diffusers' are {apart:.1e} apart on random pictures")


def scheduler_configuration(recipe: dict, diffusion: GaussianDiffusion) -> dict:
    """The scheduler's arguments that are this diffusion."""
    T, betas = diffusion.timestep_num, diffusion.betas
    if recipe["beta_schedule"] == "cosine":
        named = {"beta_schedule": "squaredcos_cap_v2"}
    elif betas.max() < MAX_BETA:
        named = {"beta_schedule": "linear", "beta_start": betas[0].item(), "beta_end": betas[-1].item()}
    else:
        named = {"trained_betas": betas.tolist()}
    return named | {
        "num_train_timesteps": T,
        "prediction_type": PREDICTION_TYPES[recipe["objective"]],
        "clip_sample": recipe["clip_denoised"],
        "variance_type": "fixed_small",
        "timestep_spacing": "trailing",
    }


def diffusion_keys(scheduler) -> dict:
    """The recipe's keys of a scheduler. ValueError, by name, for what they cannot say; what only concerns how one
    samples is said, and left to our own samplers."""
    config = scheduler.config
    usual = {"thresholding": False, "rescale_betas_zero_snr": False}
    usual |= {"clip_sample_range": 1.0} if config["clip_sample"] else {}
    for key, value in usual.items():
        if config.get(key, value) != value:
            raise ValueError(f"{key} {config[key]} cannot be represented here")
    if config["prediction_type"] not in OBJECTIVES or "learned" in str(config.get("variance_type")):
        what = "prediction_type" if config["prediction_type"] not in OBJECTIVES else "variance_type"
        raise ValueError(f"{what} {config[what]} cannot be represented here")
    T = config["num_train_timesteps"]
    names = [name for name, betas in BETA_SCHEDULES.items() if _same(betas(T), scheduler.betas)]
    if not names:
        name = "trained_betas" if config["trained_betas"] is not None else f"beta_schedule {config['beta_schedule']}"
        ends = f"{name} from {scheduler.betas[0]:.3g} to {scheduler.betas[-1]:.3g}"
        raise ValueError(f"{ends} in {T} timesteps cannot be represented here, where betas are linear or cosine")
    ours = {"variance_type": "fixed_small", "timestep_spacing": "trailing", "steps_offset": 0, "set_alpha_to_one": True}
    for key, value in ours.items():
        if config.get(key, value) != value:
            print(f"{key} {config[key]} is left behind: samplers here have {value}")
    return {
        "timestep_num": T,
        "beta_schedule": names[0],
        "objective": OBJECTIVES[config["prediction_type"]],
        "clip_denoised": config["clip_sample"],
    }


def _canonical(recipe: dict) -> tuple:
    """What a recipe means to diffusers: two that mean the same there are equal."""
    keys = {key: recipe[key] for key in MODEL_KEYS}
    network = keys if recipe["diffusers_unet"] else configuration(keys)
    diffusion = GaussianDiffusion(**{key: recipe[key] for key in DIFFUSION_KEYS})
    return network, scheduler_configuration(recipe, diffusion)


def _same(ours: Tensor, theirs: Tensor) -> bool:
    """To float32's rounding, which theirs have."""
    return len(ours) == len(theirs) and torch.allclose(ours, theirs.double(), rtol=1e-4, atol=1e-8)


def _components(folder: Path) -> tuple[Path, Path]:
    """Where its unet and its scheduler are."""
    index = folder / "model_index.json"
    if not index.exists():
        raise CheckpointError(f"{folder} is no diffusers folder: it has no model_index.json")
    pipeline = _json(index)
    parts = sorted(key for key, value in pipeline.items() if isinstance(value, list) and value and value[0])
    if pipeline.get("_class_name") not in PIPELINES or parts != ["scheduler", "unet"]:
        name = f"{pipeline.get('_class_name')} of {', '.join(parts) or 'nothing'}"
        raise CheckpointError(f"{folder} is a {name}, not a DDPMPipeline or DDIMPipeline of scheduler, unet")
    return tuple(folder / part if (folder / part).is_dir() else folder for part in ("unet", "scheduler"))


def _json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} does not exist") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not an object of keys and values")
    return content


@contextmanager
def _refused(folder: Path):
    """Whatever goes wrong with somebody's folder as a CheckpointError in one line: diffusers checks little, and
    fails in many ways."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        plain = isinstance(error, OSError | ValueError | RuntimeError | ConfigError)
        reason = " ".join(str(error).split()) if plain else f"its configuration makes no sense ({error!r})"
        if "Unable to load weights" in reason:
            reason = "its weights are damaged, or more than tensors; nothing in them was run"
        raise CheckpointError(f"{folder}: {reason[:300]}") from error


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
