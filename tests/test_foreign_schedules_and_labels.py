"""What others' trainings in diffusers look like: any betas, the schedulers of solvers, half precision, and labels."""

import diffusers
import pytest
import torch
from helpers.networks import noisy
from helpers.pipelines import equals_ten_ddim_steps, save_pipeline
from helpers.scripts import in_process
from test_foreign_diffusers_folders import TINY

from diffusion import SampleSpec, sample
from files.errors import ConfigError
from models import UNet, relabelled
from models.diffusers_unet import DiffusersUNet
from runs import load_run
from runs.config import load_recipe
from runs.network import build
from runs.recipe import plain_recipe
from runs.run import Run
from runs.shared_weights import facts_of, save_shared_weights
from sharing.diffusers_folder import SCHEDULERS, export_folder, import_folder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy, in diffusers
LABELS = torch.tensor([0, 9, 3])
FLAT = TINY | {"block_out_channels": (8,), "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}


def shared(run, file):
    save_shared_weights(file, run.model.state_dict(), facts_of(run.recipe, run.weights, run.step), torch.float32)
    return file


@pytest.mark.parametrize(
    "settings",
    [
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},  # latent diffusion
        {"num_train_timesteps": 200},  # tutorials: the betas of T = 1000, in fewer timesteps
        {"beta_end": 0.03, "prediction_type": "v_prediction"},
        {"trained_betas": [0.001 * (1 + i % 7) for i in range(250)], "num_train_timesteps": 250},
        {"beta_schedule": "sigmoid"},
    ],
)
def test_any_betas_come_in_and_go_out(tmp_path, settings, capsys):
    scheduler = diffusers.DDPMScheduler(**settings)
    save_pipeline(tmp_path / "tiny", scheduler, **FLAT)
    run = load_run(shared(import_folder(tmp_path / "tiny"), tmp_path / "tiny.safetensors"))
    assert "the recipe lists them" in capsys.readouterr().out
    assert run.recipe["betas"] == scheduler.betas.tolist() and run.recipe["timestep_num"] == len(scheduler.betas)
    if scheduler.config.beta_schedule != "sigmoid":  # which DDIM there does not know
        equals_ten_ddim_steps(run, tmp_path / "tiny", (2, 3, 8, 8))
    run.model.float()
    export_folder(run, tmp_path / "out")
    again = diffusers.DDPMScheduler.from_pretrained(tmp_path / "out" / "scheduler")
    assert (
        torch.equal(again.betas, scheduler.betas) and again.config.prediction_type == scheduler.config.prediction_type
    )
    assert import_folder(tmp_path / "out").recipe == run.recipe


def test_a_run_with_betas_of_its_own_goes_out_and_comes_back(tmp_path):
    """diffusers keeps them in float32."""
    recipe = plain_recipe("Digits", timestep_num=4, betas=[0.1, 0.2, 0.3, 0.9], model_channels=8, num_heads=2)
    export_folder(Run(*build(recipe), recipe, 0, "ema"), tmp_path / "out")
    assert import_folder(tmp_path / "out").recipe["betas"] == recipe["betas"]


def test_listed_betas_are_kept_until_another_schedule_is_asked_for(tmp_path):
    run = import_folder(save_and_name(tmp_path / "tiny", diffusers.DDPMScheduler(num_train_timesteps=200)))
    config, first = tmp_path / "c.yaml", {"init_from": str(shared(run, tmp_path / "tiny.safetensors"))}
    config.write_text("Train_Data: {Own: {data_path: x, beta_schedule: flow}}")

    def recipe(*texts):
        return load_recipe(config, "Own", texts, first, lambda recipe: load_run(recipe["init_from"]).recipe)

    assert torch.equal(build(recipe())[1].betas, run.diffusion.betas)
    assert recipe("beta_schedule=cosine")["betas"] is None
    with pytest.raises(ConfigError, match="beta_schedule=cosine: .* was trained with betas of its own"):
        load_run(first["init_from"], beta_schedule="cosine")
    with pytest.raises(ConfigError, match="200 betas do not fit timestep_num=100"):
        recipe("timestep_num=100")
    for wrong in ("betas=[0.1, x]", "betas=[0.1, 2]", "betas=true"):
        with pytest.raises(ConfigError, match="betas must be a list of numbers at least 0 and at most 1 or null"):
            recipe(wrong)
    assert plain_recipe("X", timestep_num=2, betas=["1e-1", 0.2])["betas"] == [0.1, 0.2]  # as YAML reads them


def save_and_name(folder, scheduler, **config):
    save_pipeline(folder, scheduler, **TINY | config)
    return folder


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_folder_with_the_scheduler_of_any_solver_draws_what_it_drew(tmp_path, name):
    """The same betas and prediction: DDIM gives the same samples by both, and clips if the folder does."""
    kind, T = getattr(diffusers, name), 100  # some of them take seconds for the tables of 1,000 timesteps
    settings = {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction", "num_train_timesteps": T}
    run = import_folder(save_and_name(tmp_path / "own", kind(**settings), **FLAT))
    clips = name in ("DDPMScheduler", "DDIMScheduler")  # of the others none does by default
    assert (run.recipe["clip_denoised"], run.recipe["objective"]) == (clips, "pred_v")
    ours = {"clip_sample": clips, "set_alpha_to_one": True}  # PNDM stops at the first timestep
    equals_ten_ddim_steps(run, tmp_path / "own", (2, 3, 8, 8), **ours)
    trained_with = diffusers.DDPMScheduler(T, beta_schedule="squaredcos_cap_v2", clip_sample=True).config
    run = import_folder(save_and_name(tmp_path / "swapped", kind.from_config(trained_with), **FLAT))
    assert (run.recipe["clip_denoised"], run.recipe["beta_schedule"], run.recipe["betas"]) == (True, "cosine", None)


@pytest.mark.parametrize("clips", [False, True])
def test_the_samples_of_a_solver_are_ours(tmp_path, clips):
    """DPM-Solver++(2M), as its folder asks for it: the same samples by both. Its float32 tables differ by 1e-7."""
    scheduler = diffusers.DPMSolverMultistepScheduler(timestep_spacing="trailing", thresholding=clips, beta_end=0.015)
    unet = save_pipeline(tmp_path / "tiny", scheduler, **TINY)
    run = import_folder(tmp_path / "tiny")
    x = noisy(2, 3, 8, 8, dtype=torch.float64)
    ours = sample(run.diffusion, run.model.double(), x, SampleSpec.parse("DPMpp_10"))
    scheduler.set_timesteps(10)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet.double()(x, t).sample, t, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)
    assert (ours.abs().max() <= 1) == clips


@pytest.mark.parametrize("how", [{}, {"max_shard_size": "200KB"}, {"safe_serialization": False}])
def test_files_of_a_variant_are_read(tmp_path, how):
    unet = save_pipeline(tmp_path / "tiny", **TINY).half()
    for file in (tmp_path / "tiny" / "unet").glob("*.safetensors"):
        file.unlink()
    unet.save_pretrained(tmp_path / "tiny" / "unet", variant="fp16", **how)
    files = [file.name for file in (tmp_path / "tiny" / "unet").iterdir()]
    assert all("fp16" in name for name in files if name != "config.json") and len(files) > 1
    run, x, t = import_folder(tmp_path / "tiny"), noisy(2, 3, 8, 8), torch.tensor([3, 800])
    assert next(run.model.parameters()).dtype == torch.float32
    torch.testing.assert_close(run.model(x, t), unet.float()(x, t).sample, rtol=0, atol=1e-5)
    unet.mul = [p.data.mul_(2) for p in unet.parameters()]
    unet.save_pretrained(tmp_path / "tiny" / "unet", safe_serialization=how.get("safe_serialization", True))
    run = import_folder(tmp_path / "tiny")  # where full precision is there, too, it counts
    torch.testing.assert_close(run.model(x, t), unet(x, t).sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ours", [False, True])
def test_labels_come_in(tmp_path, ours):
    """Ten classes of diffusers are ten here; no label, which was not trained, is their mean."""
    unet = save_pipeline(tmp_path / "tiny", **TINY | {"num_class_embeds": 10})
    with torch.no_grad():
        for name, bias in unet.named_parameters():
            if ours and name.endswith(("to_q.bias", "to_k.bias", "to_v.bias")):
                bias.zero_()
    unet.save_pretrained(tmp_path / "tiny" / "unet")
    run = import_folder(tmp_path / "tiny")
    assert isinstance(run.model, UNet if ours else DiffusersUNet)
    assert (run.recipe["num_classes"], run.recipe["label_dropout"]) == (10, 0)
    x, t = noisy(3, 3, 8, 8), torch.tensor([3, 400, 800])
    with torch.no_grad():
        theirs = unet(x, t, class_labels=LABELS).sample
        torch.testing.assert_close(run.model(x, t, LABELS), theirs, rtol=0, atol=1e-5)
        unet.class_embedding.weight[:] = unet.class_embedding.weight.mean(0)
        torch.testing.assert_close(run.model(x, t), unet(x, t, class_labels=LABELS).sample, rtol=0, atol=1e-5)
    assert not torch.allclose(run.model(x, t, LABELS), run.model(x, t), atol=1e-2)
    with pytest.raises(ValueError, match="only knows guidance 1"):
        run.sample(1, "DDIM_2", guidance=2.0)
    back = load_run(shared(run, tmp_path / "tiny.safetensors"))
    assert torch.equal(back.sample(3, "DDIM_2", labels=[0, 9, 3]), run.sample(3, "DDIM_2", labels=[0, 9, 3]))
    assert not torch.equal(back.sample(3, "DDIM_2", labels=[1, 9, 3]), run.sample(3, "DDIM_2", labels=[0, 9, 3]))
    export_folder(back, tmp_path / "out")
    assert import_folder(tmp_path / "out").recipe["num_classes"] == 10


@pytest.mark.slow
def test_a_network_of_diffusers_with_labels_is_trained_on(tmp_path):
    """Its ten classes become the ten digits; with the next classes each keeps its embedding by its name."""
    save_pipeline(tmp_path / "tiny", **TINY | {"num_class_embeds": 10, "in_channels": 1, "out_channels": 1})
    first = shared(import_folder(tmp_path / "tiny"), tmp_path / "tiny.safetensors")
    settings = ("num_classes=auto", "learning_rate=0", "batch_size=8", "max_steps=1", "sample_num=10")
    args = ("--data_name", "Digits", "--init_from", first, "--save_dir", tmp_path, "--set", *settings)
    done = in_process("train_solver.py", *args, "preview_info=DDIM_1")
    assert done.returncode == 0, done.stderr
    run, x, t = load_run(tmp_path / "digits" / "digits.pt"), noisy(3, 1, 8, 8), torch.tensor([3, 400, 800])
    assert run.recipe["class_names"] == [str(i) for i in range(10)] and isinstance(run.model, DiffusersUNet)
    before = run.model(x, t, LABELS)
    torch.testing.assert_close(before, load_run(first).model(x, t, LABELS), rtol=0, atol=1e-6)
    run.model.load_state_dict(relabelled(run.model.state_dict(), [0, None, 3, 9, *range(1, 7)]))
    torch.testing.assert_close(run.model(x, t, torch.tensor([0, 3, 2])), before, rtol=0, atol=1e-6)
    torch.testing.assert_close(run.model(x, t, torch.tensor([1, 1, 1])), run.model(x, t), rtol=0, atol=1e-6)
