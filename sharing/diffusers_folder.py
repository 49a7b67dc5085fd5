"""Runs as folders of diffusers pipelines, and back: model_index.json, unet/, scheduler/ and our recipe.json."""

import gc
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from files.atomic import write_file
from files.errors import CheckpointError, ConfigError, short
from models.diffusers_unet import arguments, diffusers, keywords_of, settings
from runs.network import build, check_weights
from runs.recipe import MODEL_KEYS, plain_recipe
from runs.run import Run
from runs.shared_weights import check_facts, facts_of
from sharing.diffusers_scheduler import diffusion_keys, scheduler_configuration
from sharing.unet_mapping import configuration, is_ours, paired_tensors, qkv_biases

CLOSE = 1e-5  # largest difference of the outputs in float32; rounding alone leaves about 1e-6
RECIPE = "recipe.json"
PIPELINES = ("DDPMPipeline", "DDIMPipeline")
SOLVERS = "DPMSolverMultistep DPMSolverSinglestep DEISMultistep UniPCMultistep PNDM LMSDiscrete"
SOLVERS += " EulerDiscrete EulerAncestralDiscrete HeunDiscrete KDPM2Discrete KDPM2AncestralDiscrete"
SCHEDULERS = tuple(f"{name}Scheduler" for name in ("DDPM", "DDIM", *SOLVERS.split()))  # the same networks fit all


def export_folder(run: Run, folder: Path) -> None:
    """Writes a folder that DDPMPipeline and DDIMPipeline load, and checks that its network computes the same.

    Raises ConfigError without diffusers, and for a network that UNet2DModel cannot represent; CheckpointError if the
    outputs differ by more than 1e-5.
    """
    try:
        if str(folder).encode(errors="ignore").decode() != str(folder):  # safetensors would open another file
            raise ValueError("the name of the folder is not valid UTF-8: choose another")
        unet = to_unet2d(run)
        scheduler = diffusers().DDPMScheduler(**scheduler_configuration(run.recipe, run.diffusion))
        diffusers().DDPMPipeline(unet, scheduler).save_pretrained(folder)
    except ValueError as error:
        raise ConfigError(f"this cannot be exported: {error}") from error
    except SafetensorError as error:  # such as a full disk
        raise CheckpointError(f"the weights were not written: {error}") from error
    facts = facts_of(run.recipe, run.weights, run.step)
    write_file(folder / RECIPE, json.dumps(facts, indent=1) + "\n")
    check_same_output(run.model, load_unet(folder / "unet"), run.recipe)
    gc.collect()  # diffusers leaves its mapped file in a cycle, and Windows moves no folder with an open file


def import_folder(folder: Path) -> Run:
    """The run in such a folder, or in an older one, where the files of unet and scheduler are side by side.

    If the network differs from our UNet, the recipe's diffusers_unet describes it. Raises CheckpointError for a folder
    that is damaged, of another kind, or cannot be represented.
    """
    try:
        unet, scheduler = _components(folder)
        theirs, config = load_unet(unet), _json(scheduler / "scheduler_config.json", SCHEDULERS)
        keys = {"network": "unet"} | diffusion_keys(getattr(diffusers(), config["_class_name"]).from_config(config))
        if (folder / RECIPE).exists():
            facts = check_facts((folder / RECIPE).read_text(encoding="utf-8", errors="replace"), folder / RECIPE)
            told = {key: facts["recipe"][key] for key in keys}
            told |= {"betas": torch.tensor(told["betas"]).tolist()} if told.get("betas") else {}  # float32, as there
            if keys != told:
                raise ValueError(f"{RECIPE} disagrees with the configuration of the network or the scheduler")
        else:
            if theirs.config.num_class_embeds:
                add_no_label(theirs)
                keys["label_dropout"] = 0.0
            keys |= keywords_of(dict(theirs.config)) | {"loss_type": "l2"}
            if not is_ours(theirs):
                keys["diffusers_unet"] = settings(dict(theirs.config))
            facts = {"recipe": plain_recipe(folder.resolve().name, **keys), "weights": "raw", "step": 0}
        recipe = facts["recipe"]
        model, diffusion = build(recipe)
        if recipe["diffusers_unet"]:
            model.unet.load_state_dict(theirs.state_dict())
        else:
            with torch.no_grad():
                for tensor, peer in paired_tensors(model, theirs):
                    tensor.copy_(peer)
        check_weights(model, folder)
        check_same_output(model.eval(), theirs, recipe)
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # diffusers checks little and raises many types
        plain = isinstance(error, OSError | ValueError | RuntimeError | ConfigError)
        reason = " ".join(str(error).split()) if plain else f"its configuration is invalid ({short(error)})"
        raise CheckpointError(f"{folder}: {reason[:300]}") from error
    return Run(model, diffusion, recipe, facts["step"], facts["weights"])


def to_unet2d(run: Run) -> nn.Module:
    """The run's network as a UNet2DModel."""
    if run.recipe["network"] != "unet":
        raise ValueError(f"network={run.recipe['network']} cannot be represented in UNet2DModel")
    if run.recipe["diffusers_unet"]:
        return run.model.unet
    unet = diffusers().UNet2DModel(**configuration({key: run.recipe[key] for key in MODEL_KEYS}))
    with torch.no_grad():
        for ours, theirs in paired_tensors(run.model, unet):
            theirs.copy_(ours)
        for bias in qkv_biases(unet):
            bias.zero_()
    return unet.eval()


def load_unet(folder: Path) -> nn.Module:
    """The UNet2DModel in a folder, in eval mode. ValueError if a tensor is missing or unexpected."""
    config = {key: value for key, value in _json(folder / "config.json", ("UNet2DModel",)).items() if key[:1] != "_"}
    if unknown := sorted(set(config) - set(arguments())):
        raise ValueError(f"this diffusers does not know {', '.join(unknown)} in its config.json")
    files = [*folder.glob("*.safetensors")] or [*folder.glob("*.bin")]
    # of model.safetensors: [], of model.fp16.safetensors: ["fp16"], of a part of several: ["fp16-00001-of-00002"]
    variant = min((file.name.split(".")[1:-1] for file in files), key=len, default=[])
    unet, report = diffusers().UNet2DModel.from_pretrained(
        str(folder), low_cpu_mem_usage=False, output_loading_info=True,
        use_safetensors=not files or files[0].suffix == ".safetensors",
        variant=variant[0].split("-")[0] if variant else None,
    )  # fmt: skip
    for what in ("missing", "unexpected", "mismatched"):
        if names := [str(name) for name in report[f"{what}_keys"]]:
            raise ValueError(f"{what} tensor {names[0]} (of {len(names)})")
    return unet.float().eval()


def add_no_label(unet: nn.Module) -> None:
    """Adds an embedding for no label, which networks here have last: the mean of the others, as it was not trained."""
    known = unet.class_embedding.weight.detach()
    print(f"its labels are the classes 0 to {len(known) - 1}, without names and without guidance")
    unet.class_embedding = nn.Embedding.from_pretrained(torch.cat([known, known.mean(0, keepdim=True)]))
    unet.register_to_config(num_class_embeds=len(known) + 1)


def check_same_output(ours: nn.Module, theirs: nn.Module, recipe: dict) -> None:
    """CheckpointError unless the outputs of both networks on random pictures differ by at most 1e-5."""
    generator = torch.Generator().manual_seed(0)
    side, N = max(32, 2 ** (len(recipe["channel_mult"]) - 1)), recipe["num_classes"]  # larger ones prove no more
    x = torch.randn(4, recipe["image_channel"], side, side, generator=generator)
    t = torch.linspace(0, recipe["timestep_num"] - 1, 4).long()
    labels = [torch.tensor([0, 1, N - 1, N])] if N else []
    with torch.inference_mode():
        apart = (ours(x, t, *labels) - theirs(x, t, *labels).sample).abs().max().item()
    if not apart <= CLOSE:
        raise CheckpointError(f"the outputs of the two networks differ by {apart:.1e}, more than {CLOSE:.0e}")
    print(f"on random pictures the outputs of our network and of diffusers' differ by at most {apart:.1e}")


def _components(folder: Path) -> list[Path]:
    """The folders of its unet and of its scheduler."""
    if not (folder / "model_index.json").exists():
        raise ValueError("it is not a diffusers folder: it has no model_index.json")
    pipeline = _json(folder / "model_index.json", PIPELINES)
    parts = sorted(key for key, value in pipeline.items() if isinstance(value, list) and value and value[0])
    if parts != ["scheduler", "unet"]:
        raise ValueError(f"its parts are {', '.join(parts) or 'nothing'}, not scheduler, unet")
    return [folder / part if (folder / part).is_dir() else folder for part in ("unet", "scheduler")]


def _json(file: Path, classes: tuple[str, ...]) -> dict:
    """A configuration of diffusers. ValueError if it is not of one of these classes."""
    content = json.loads(file.read_text(encoding="utf-8"))
    if content["_class_name"] not in classes:
        raise ValueError(f"its {file.name} is of {content['_class_name']}, not of {' or '.join(classes)}")
    return content
