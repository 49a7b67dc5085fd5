"""Networks by name: what a recipe says of them, one of the reader's own, and the transformer from end to end."""

import json

import pytest
import torch
from helpers.networks import noisy, randomise, small_run
from helpers.scripts import LABELLED, refused, state_hash, train
from torch import nn

from files.errors import CheckpointError, ConfigError
from models import NETWORKS, DiT, UNet, build_model
from models.blocks import timestep_embedding
from runs import recipe as recipes
from runs.network import build, unused_keys, without_weights
from runs.pretrained import load_pretrained
from runs.recipe import KEYS, MODEL_KEYS, network_keys, plain_recipe
from runs.run import load_run
from runs.shared_weights import facts_of, save_shared_weights
from sharing.diffusers_folder import export_folder, import_folder

DIT = {"network": "dit", "depth": 2}
SHIPPED = "checkpoints/digits.safetensors"


class Mixer(nn.Module):
    """A small network of a reader, which sees no labels: every pixel of a picture as a number of one layer."""

    def __init__(self, image_size: int = 32, image_channel: int = 3, hidden: int = 24, slope: float | None = None):
        super().__init__()
        pixels = image_channel * image_size**2
        self.layers = nn.Sequential(
            nn.Linear(pixels + 8, hidden), nn.LeakyReLU(slope or 0.1), nn.Linear(hidden, pixels)
        )
        self.register_buffer("constant", nn.init.constant_(torch.empty(1, device="cpu"), 0.5), persistent=False)

    def forward(self, x, t):
        return self.layers(torch.cat([x.flatten(1), timestep_embedding(t, 8)], dim=1)).view(x.shape)


@pytest.fixture
def mixer(monkeypatch):
    """Its line in the table. The keys of a recipe are read from the table at import: once more here."""
    monkeypatch.setitem(NETWORKS, "mixer", Mixer)
    for name, key in network_keys().items():
        monkeypatch.setitem(MODEL_KEYS, name, key)
        monkeypatch.setitem(KEYS, name, key)


# --- the table and the keys ---


def test_a_network_has_a_name():
    assert isinstance(build_model(model_channels=8, num_heads=1), UNet)
    assert isinstance(build_model("dit", depth=1), DiT)
    with pytest.raises(ValueError, match="'dut' is not known; known are unet, dit"):
        build_model("dut")
    with pytest.raises(ValueError, match="network=dit: diffusers_unet"):
        build_model("dit", {"sample_size": 8})
    with pytest.raises(TypeError, match="channel_mult"):
        build_model("dit", channel_mult=(1, 2))


def test_every_argument_of_a_network_is_a_key(mixer):
    keys = network_keys()
    assert keys["network"].kind == tuple(NETWORKS) and NETWORKS["mixer"] and keys["depth"].default == 12
    assert (keys["hidden"].kind, keys["hidden"].default) == (int, 24)
    assert (keys["slope"].kind, keys["slope"].default) == (float, None)
    assert keys["image_size"] == MODEL_KEYS["image_size"]  # of all networks


@pytest.mark.parametrize(
    "arguments, says",
    [
        ("image_size: int = 16", "Mixer: the default of image_size must be 32"),
        ("hidden: int", "Mixer: hidden needs a default"),
        ("widths: tuple[int, ...] = (1, 2)", "Mixer: widths needs .* in LIMITS"),
    ],
)
def test_an_argument_that_cannot_be_a_key_is_refused(monkeypatch, arguments, says):
    exec(f"class Mixer:\n    def __init__(self, {arguments}): pass", made := {})
    monkeypatch.setitem(NETWORKS, "mixer", made["Mixer"])
    with pytest.raises(TypeError, match=says):
        network_keys()
    monkeypatch.setitem(recipes.LIMITS, "widths", recipes.Key(list))
    if "widths" in arguments:
        assert network_keys()["widths"].default == [1, 2]


def test_weights_that_are_older_than_a_key_load(mixer):
    assert load_run(SHIPPED).recipe["hidden"] == 24  # not null
    assert load_run(SHIPPED).recipe["network"] == "unet"


@pytest.mark.parametrize("network", ["unet", "dit"])
def test_a_planned_network_draws_no_weights(network, monkeypatch):
    """On the meta device the first random numbers would import torch.compile, which takes seconds."""
    for method in ("normal_", "uniform_"):
        monkeypatch.setattr(torch.Tensor, method, None)
    model, _ = without_weights(plain_recipe("Digits", network=network, num_classes=10))
    assert all(weight.is_meta for weight in model.parameters())


def test_a_planned_network_has_its_constants(mixer):
    assert without_weights(plain_recipe("Digits", network="mixer"))[0].constant == 0.5


def test_a_recipe_names_the_keys_that_its_network_does_not_use():
    recipe = plain_recipe("Sprites", network="dit", channel_mult=[1, 2], num_heads=2, depth=1)
    assert unused_keys(recipe) == ["channel_mult"] and isinstance(build(recipe)[0], DiT)
    assert unused_keys(recipe | {"network": "unet"}) == ["depth"]
    with pytest.raises(ConfigError, match="network must be one of unet, dit.* not 'vit'"):
        plain_recipe("Sprites", network="vit")


@pytest.mark.slow
def test_a_network_of_the_readers_trains_and_samples(mixer, tmp_path):
    run = train(tmp_path, settings={"network": "mixer", "hidden": 12, "max_steps": 2})
    assert run.returncode == 0, run.stderr
    assert "parameters  1,708; network=mixer does not use model_channels, channel_mult, num_res" in run.stdout
    trained = load_run(tmp_path / "digits" / "digits.pt")
    assert isinstance(trained.model, Mixer) and trained.sample(2, "DDIM_2_0p0").shape == (2, 1, 8, 8)
    refused(train(tmp_path, settings=LABELLED | {"network": "mixer"}), 2, "network=mixer has no labels", "null")
    refused(train(tmp_path, settings={"network": "mixer", "hidden": 9000}), 2, "hidden must be", "at most 8,192")


# --- the transformer, from training to samples ---


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """A tiny transformer with labels, trained in two parts."""
    save_dir, settings = tmp_path_factory.mktemp("dit"), DIT | LABELLED | {"optimizer": "muon", "dropout": 0.1}
    for steps, says in ((4, "network=dit does not use channel_mult, num_res_blocks"), (6, "resuming from step 4")):
        run = train(save_dir, settings=settings | {"max_steps": steps})
        assert run.returncode == 0 and says in run.stdout, run.stderr
    return save_dir / "digits" / "digits.pt"


@pytest.mark.slow
def test_a_transformer_resumes_exactly(transformer, tmp_path):
    assert train(tmp_path, settings=DIT | LABELLED | {"optimizer": "muon", "dropout": 0.1}).returncode == 0
    assert state_hash(tmp_path / "digits" / "digits.pt") == state_hash(transformer)
    refused(train(tmp_path, settings=LABELLED | {"optimizer": "muon"}), 1, "network: was 'dit', is 'unet'")


@pytest.mark.slow
def test_a_transformer_is_sampled_shared_and_evaluated(transformer, tmp_path, in_process):
    shared = tmp_path / "dit.safetensors"
    assert in_process("convert.py", transformer, shared).returncode == 0
    assert torch.equal(load_run(shared).sample(3, "DDIM_2_0p0"), load_run(transformer).sample(3, "DDIM_2_0p0"))
    common = ("--model_path", shared, "--sample_info", "DDIM_2_0p0", "--save_dir", tmp_path, "--sample_num", "10")
    for mode, result in (("random_gen", "final.png"), ("interpolate", "interpolate.png"), ("evaluate", ".json")):
        run = in_process("test_solver.py", "--test_mode", mode, *common)
        assert run.returncode == 0 and list(tmp_path.glob(f"*{result}")), run.stderr


@pytest.mark.slow
def test_a_network_that_diffusers_lacks_is_not_exported(transformer, tmp_path, in_process):
    refused(in_process("convert.py", transformer, tmp_path / "out"), 2, "network=dit cannot be represented")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_transformer_goes_on_with_other_classes(transformer, tmp_path, capsys):
    """At first a known class draws what it drew, a new one and a network without labels what no label draws."""
    first, file = load_run(transformer), tmp_path / "dit.safetensors"
    randomise(first.model)  # so that labels matter
    save_shared_weights(file, first.model.state_dict(), facts_of(first.recipe, "ema", 6), torch.float32)
    x, t, label = noisy(2, 1, 8, 8), torch.tensor([3, 500]), torch.tensor

    def tuned(**classes):
        recipe = first.recipe | {"init_from": str(file)} | classes
        model, _ = build(recipe)
        load_pretrained(model, recipe)
        return model.eval()

    model = tuned(num_classes=3, class_names=["7", "rose", "2"])
    assert "1 of 3 are new" in capsys.readouterr().out
    assert (first.model(x, t, label([7, 2])) - first.model(x, t)).abs().amax(dim=(1, 2, 3)).min() > 0.1
    torch.testing.assert_close(model(x, t, label([0, 2])), first.model(x, t, label([7, 2])))
    torch.testing.assert_close(model(x, t, label([1, 3])), first.model(x, t))
    torch.testing.assert_close(tuned(num_classes=None, class_names=None)(x, t), first.model(x, t))


@pytest.mark.slow
def test_weights_of_another_network_are_refused(transformer, tmp_path):
    recipe = load_run(transformer).recipe | {"network": "unet", "init_from": str(transformer)}
    with pytest.raises(CheckpointError, match="its weights do not fit the network"):
        load_pretrained(build(recipe)[0], recipe)


def test_a_folder_whose_recipe_names_another_network_is_refused(tmp_path):
    export_folder(small_run(), tmp_path)
    facts = json.loads((tmp_path / "recipe.json").read_text())
    facts["recipe"]["network"] = "dit"
    (tmp_path / "recipe.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="recipe.json disagrees"):
        import_folder(tmp_path)
