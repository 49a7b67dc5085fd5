"""Our diffusion as the scheduler of a diffusers pipeline, and back:

    objective -> prediction_type               betas -> beta_schedule or trained_betas
    clip_denoised -> clip_sample and thresholding

diffusers calls our evenly spaced timesteps "trailing", and the variance of our DDPM "fixed_small". Its solvers ignore
clip_sample, but not thresholding: with sample_max_value 1 its threshold is 1 for every picture, which is clipping.
"""

import torch

from diffusion import GaussianDiffusion
from diffusion.schedule import BETA_SCHEDULES, MAX_BETA

PREDICTION_TYPES = {"pred_noise": "epsilon", "pred_x0": "sample", "pred_v": "v_prediction"}
TRIED = ("DDPM", "DDIM", "UniPCMultistep", "DPMSolverMultistep")  # schedulers that draw what ours do from an export
OBJECTIVES = {theirs: ours for ours, theirs in PREDICTION_TYPES.items()}


def scheduler_configuration(recipe: dict, diffusion: GaussianDiffusion) -> dict:
    """The arguments of a diffusers scheduler with this diffusion. ValueError for an objective that it cannot have.

    A schedule without a name in diffusers, and a linear one that was capped, is written out as trained_betas.
    """
    if recipe["objective"] not in PREDICTION_TYPES:
        known = ", ".join(PREDICTION_TYPES)
        raise ValueError(f"diffusers' DDPM and DDIM know {known}, not {recipe['objective']}: use a .safetensors")
    betas, schedule = diffusion.betas, None if recipe["betas"] else recipe["beta_schedule"]
    named = {"trained_betas": betas.tolist()}
    if schedule == "cosine":
        named = {"beta_schedule": "squaredcos_cap_v2"}
    elif schedule == "linear" and betas.max() < MAX_BETA:
        named = {"beta_schedule": "linear", "beta_start": betas[0].item(), "beta_end": betas[-1].item()}
    return named | {
        "num_train_timesteps": diffusion.timestep_num,
        "prediction_type": PREDICTION_TYPES[recipe["objective"]],
        "clip_sample": recipe["clip_denoised"],
        "thresholding": recipe["clip_denoised"],
        "sample_max_value": 1.0,
        "dynamic_thresholding_ratio": 0.0,  # any gives 1; between infinities, in float16, a larger quantile is NaN
        "variance_type": "fixed_small",
        "timestep_spacing": "trailing",
    }


def diffusion_keys(scheduler) -> dict:
    """The recipe keys of a diffusers scheduler. ValueError names what they cannot represent.

    Betas that no schedule here has are listed in the recipe. Settings of sampling are ignored, with a message.
    """
    config = scheduler.config
    unsupported = {
        "rescale_betas_zero_snr": config.get("rescale_betas_zero_snr", False),
        "clip_sample_range": config.get("clip_sample") and config.get("clip_sample_range", 1.0) != 1.0,
        "sample_max_value": config.get("thresholding") and config.get("sample_max_value", 1.0) != 1.0,
        "prediction_type": config["prediction_type"] not in OBJECTIVES,
        "variance_type": "learned" in str(config.get("variance_type")),
    }
    for key, wrong in unsupported.items():
        if wrong:
            raise ValueError(f"{key} {config[key]} cannot be represented here")
    T, theirs = config["num_train_timesteps"], scheduler.betas.double()  # rounded to float32 before
    known = {name: betas(T) for name, betas in BETA_SCHEDULES.items()} if len(theirs) == T else {}
    names = [name for name, betas in known.items() if torch.allclose(betas, theirs, rtol=1e-4, atol=1e-8)]
    if not names:
        ends = f"from {scheduler.betas[0]:.3g} to {scheduler.betas[-1]:.3g}"
        print(f"its betas, {ends}, are none of the schedules here ({', '.join(BETA_SCHEDULES)}): the recipe lists them")
    ours = {"variance_type": "fixed_small", "timestep_spacing": "trailing", "steps_offset": 0, "set_alpha_to_one": True}
    for key, value in ours.items():
        if config.get(key, value) != value:
            print(f"{key} {config[key]} is ignored: our samplers use {value}")
    return {
        "timestep_num": T,
        **({"beta_schedule": names[0]} if names else {"betas": scheduler.betas.tolist()}),
        "objective": OBJECTIVES[config["prediction_type"]],
        "clip_denoised": config.get("clip_sample", False) or config.get("thresholding", False),
    }
