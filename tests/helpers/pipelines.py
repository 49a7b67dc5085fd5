"""Folders and samples of diffusers."""

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from diffusion import SampleSpec, sample
from helpers.networks import noisy, randomise


def save_pipeline(folder, scheduler=None, flat=False, **config):
    """Writes a pipeline of a UNet2DModel with random weights; returns the UNet.

    flat: with all files side by side, as the older folders on the hub have them.
    """
    unet = randomise(UNet2DModel(**config)).eval()
    DDPMPipeline(unet, scheduler or DDPMScheduler(clip_sample=True)).save_pretrained(folder)
    if flat:
        for file in [*folder.glob("unet/*"), *folder.glob("scheduler/*")]:
            file.rename(folder / file.name)
        (folder / "unet").rmdir(), (folder / "scheduler").rmdir()
    return unet


def ten_ddim_steps(pipeline, x, **settings):
    """What the pipeline itself samples from the noise x, with evenly spaced timesteps as ours. settings: of DDIM.

    In float64: at the noisiest timestep 1 / sqrt(ᾱ) is 20,000, which would magnify float32 roundings beyond everything.
    """
    pipeline.unet.double()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing", **settings)
    pipeline.set_progress_bar_config(disable=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.pipelines.ddim.pipeline_ddim.randn_tensor", lambda *_, **__: x)
        images = pipeline(len(x), num_inference_steps=10, use_clipped_model_output=True, output_type="np").images
    return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1


def equals_ten_ddim_steps(run, folder, shape, **settings):
    """Our ten DDIM steps with the run give the samples of diffusers with the folder."""
    x = noisy(*shape, dtype=torch.float64)
    ours = sample(run.diffusion, run.model.double(), x, SampleSpec.parse("DDIM_10_0p0")).clamp(-1, 1)
    theirs = ten_ddim_steps(DDIMPipeline.from_pretrained(folder), x, **settings)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert 0.05 < ours.std()
