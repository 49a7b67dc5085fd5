"""From config.yaml to a recipe: the order of its layers, types and refusals."""

from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from files.errors import ConfigError
from runs.config import load_recipe
from runs.network import build
from runs.recipe import KEYS, RESUMABLE, changed_keys, check_recipe, complete_recipe
from runs.values import ELSEWHERE

CONFIG = Path(__file__).parent.parent / "config.yaml"


def recipe_of(tmp_path, text, name="A", overrides=(), flags=None):
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return load_recipe(file, name, overrides, flags)


def test_train_setting_lists_every_default():
    setting = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["Train_Setting"]
    assert list(setting) and set(setting) == set(KEYS)
    for name, value in setting.items():
        assert (float(value) if name == "learning_rate" else value) == KEYS[name].default, name


def test_the_published_defaults():
    recipe = load_recipe(CONFIG, "Cifar10")
    expected = yaml.safe_load("""
        {dataset: Cifar10, model_channels: 128, channel_mult: [1, 2, 2, 2], num_res_blocks: 2, num_heads: 4,
        dropout: 0.0, timestep_num: 1000, beta_schedule: cosine, loss_type: l1, objective: pred_noise,
        clip_denoised: true, learning_rate: 0.0001, Adam_beta1: 0.9, Adam_beta2: 0.99}""")
    assert {key: recipe[key] for key in expected} == expected


@pytest.mark.parametrize("name", yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["Train_Data"])
def test_every_block_of_config_yaml_builds(name):
    recipe = load_recipe(CONFIG, name)
    model, diffusion = build(recipe)
    assert diffusion.timestep_num == recipe["timestep_num"]
    assert recipe["horizontal_flip"] is name.startswith(("Cifar10", "Flower102", "StyleGAN_Face"))
    assert recipe == yaml.safe_load(yaml.safe_dump(recipe))  # plain values only


def test_later_layers_override_setting_base_block_and_set(tmp_path):
    text = """
Train_Setting: {batch_size: 1, image_size: 8, seed: 1, timestep_num: 100, save_dir: setting}
Train_Data:
  Grand: {batch_size: 2, image_size: 16, seed: 2, timestep_num: 200, data_path: grand}
  Base: {base: Grand, batch_size: 3, image_size: 24, seed: 3}
  A: {base: Base, batch_size: 4, image_size: 32}
"""
    recipe = recipe_of(tmp_path, text, overrides=["batch_size=5"], flags={"save_dir": "flag"})
    assert [recipe[k] for k in ("batch_size", "image_size", "seed", "timestep_num")] == [5, 32, 3, 200]
    assert recipe["data_path"] == "grand" and recipe["save_dir"] == "flag" and recipe["pth_save_name"] == "a"
    assert recipe["model_channels"] == KEYS["model_channels"].default
    assert recipe["dataset"] == "Folder"


def test_a_block_takes_the_loader_and_the_data_of_its_base(tmp_path):
    recipe = recipe_of(tmp_path, "{Train_Setting: {}, Train_Data: {Mnist: {}, A: {base: Mnist, save_dir: ~/runs}}}")
    assert recipe["dataset"] == "Mnist" and recipe["data_name"] == "A" and recipe["data_path"] == "data/mnist"
    assert recipe["save_dir"] == str(Path.home() / "runs")


@pytest.mark.parametrize("value, expected", [("1e-4", 1e-4), ("'2e-4'", 2e-4), ("0", 0.0), ("1", 1.0)])
def test_numbers_have_the_type_of_their_key(tmp_path, value, expected):
    text = "{Train_Setting: {learning_rate: %s}, Train_Data: {A: {data_path: d}}}" % value  # noqa: UP031 (braces)
    rate = recipe_of(tmp_path, text)["learning_rate"]
    assert rate == expected and isinstance(rate, float)
    assert recipe_of(tmp_path, text, overrides=[f"learning_rate={value}"])["learning_rate"] == expected


def test_overrides_are_read_by_the_type_of_their_key():
    recipe = load_recipe(
        CONFIG,
        "Digits",
        ["max_steps=1e3", "channel_mult=1,2", "attention_resolutions=[4, 8]", "clip_denoised=false", "grad_clip=null"],
    )
    assert recipe["max_steps"] == 1000 and isinstance(recipe["max_steps"], int)
    assert recipe["channel_mult"] == [1, 2] and recipe["attention_resolutions"] == [4, 8]
    assert recipe["clip_denoised"] is False and recipe["grad_clip"] is None
    assert load_recipe(CONFIG, "Digits", ["channel_mult=2"])["channel_mult"] == [2]
    assert load_recipe(CONFIG, "Digits", ["pth_save_name=2024-01-02"])["pth_save_name"] == "2024-01-02"
    assert load_recipe(CONFIG, "Digits", ["seed=12345678901234567"])["seed"] == 12345678901234567
    assert load_recipe(CONFIG, "Digits", ["seed=1", "seed=2"])["seed"] == 2


@pytest.mark.parametrize(
    "override, says",
    [
        ("batchsize=4", "'batchsize' is not known; did you mean batch_size?"),
        ("batch_size=four", "batch_size must be a whole number at least 1 and at most 1,000,000, not 'four'"),
        ("batch_size=0", "at least 1"),
        ("batch_size=2.5", "whole number"),
        ("batch_size=true", "whole number"),
        ("batch_size=null", "whole number"),
        ("batch_size=[1, 2]", "whole number"),
        ("learning_rate=.nan", "a number"),
        ("learning_rate=.inf", "a number"),
        ("learning_rate=-1", "at least 0"),
        ("clip_denoised=1", "true or false"),
        ("beta_schedule=cosin", "one of linear, cosine"),
        ("objective=[pred_v]", "one of pred_noise"),
        ("channel_mult=[1, a]", "list of up to 32 whole numbers"),
        ("channel_mult=[]", "channel_mult"),
        ("image_channel=2", "one of 1, 3"),
        ("dropout=1", "at most 0.999"),
        ("preview_info=DDIM50", "METHOD_STEPS_ETA"),
        ("batch_size", "KEY=VALUE"),
        ("seed=1e30", "seed must be a whole number"),
        ("grad_clip=0", "grad_clip must be"),
        ("seed=0x_", "seed"),
        ("channel_mult=[1", "--set channel_mult=[1"),
        ("save_dir=", "a text"),
        ("learning_rate=1" + "0" * 400, "learning_rate must be"),
        ("seed=1" + "0" * 400, "seed must be"),
        ("pth_save_name=a/b", "pth_save_name"),
        ("pth_save_name=..", "pth_save_name"),
    ],
)
def test_a_bad_override_is_refused_with_its_key(override, says):
    with pytest.raises(ConfigError) as error:
        load_recipe(CONFIG, "Digits", [override])
    assert says in str(error.value)


@pytest.mark.parametrize(
    "text, says",
    [
        ("{Train_Setting: {}, Train_Data: {B: {data_path: d}}}", "data_name: 'A' is not known"),
        ("{Train_Setting: {}, Train_Data: {A: {base: Bee}, Bea: {}}}", "did you mean Bea?"),
        ("{Train_Setting: {}, Train_Data: {A: {base: B}, B: {base: C}, C: {base: B}}}", "A -> B -> C -> B"),
        ("{Train_Setting: {}, Train_Data: {A: {base: A}}}", "A -> A"),
        ("{Train_Setting: {}, Train_Data: {A: {base: [A]}}}", "base"),
        ("{Train_Setting: {batch: 1}, Train_Data: {A: {data_path: d}}}", "Train_Setting: 'batch' is not known"),
        ("{Train_Setting: {}, Train_Data: {A: {size: 3}}}", "Train_Data.A: 'size' is not known"),
        ("{Train_Setting: {}, Train_Date: {A: {}}}", "did you mean Train_Data?"),
        ("{Train_Setting: {}, Train_Data: {A: {data_path: d, seed: 1, seed: 2}}}", "duplicate key seed"),
        ("{Train_Setting: {}, Train_Data: {A: {}, A: {}}}", "duplicate key A"),
        ("{Train_Setting: {}, Train_Data: {A: {}}}", "Train_Data.A needs a data_path"),
        ("{Train_Setting: {}, Train_Data: {A: 3}}", "Train_Data.A must be a block"),
        ("{Train_Setting: {}, Train_Data: []}", "Train_Data must be a block"),
        ("[1]", "must be a block"),
        ("", "must be a block"),
        ("{Train_Setting: 3, Train_Data: {A: {data_path: d}}}", "Train_Setting must be a block"),
        ("{Train_Setting: {seed: 1", "config.yaml"),
        ("a: !!python/object/apply:os.system ['true']", "config.yaml"),
        ("? [1, 2]\n: 3", "config.yaml"),
    ],
)
def test_a_bad_file_is_refused_with_the_place(tmp_path, text, says):
    with pytest.raises(ConfigError) as error:
        recipe_of(tmp_path, text)
    assert says in str(error.value)


def test_a_config_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_recipe(tmp_path / "none.yaml", "A")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"bytes\.yaml"):
        load_recipe(tmp_path / "bytes.yaml", "A")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_config_may_be_in_the_encodings_of_editors_and_without_train_setting(tmp_path, encoding):
    for setting in ("", "Train_Setting:\n"):
        text = f"{setting}Train_Data:\n  A: {{data_path: Bücher}}  # 书\n"
        (tmp_path / "c.yaml").write_text(text, encoding=encoding)
        recipe = load_recipe(tmp_path / "c.yaml", "A")
        assert recipe["data_path"] == "Bücher" and recipe["batch_size"] == KEYS["batch_size"].default


def test_without_a_config_of_its_own_a_working_directory_takes_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe(Path("config.yaml"), "Digits") == load_recipe(CONFIG, "Digits")
    with pytest.raises(ConfigError, match="mine.yaml"):
        load_recipe(Path("mine.yaml"), "Digits")
    recipe_of(tmp_path, "Train_Data: {B: {data_path: d}}", "B")
    assert load_recipe(Path("config.yaml"), "B")["data_path"] == "d"


def test_a_preview_takes_at_most_all_timesteps():
    previews = {"DDIM_2000_0p0": "DDIM_100_0p0", "ddpm_101_quad": "DDPM_100_0p0_quad", "DPMpp_20": "DPMpp_20_0p0"}
    for text, expected in previews.items():
        assert load_recipe(CONFIG, "Digits", ["timestep_num=100", f"preview_info={text}"])["preview_info"] == expected


def test_keys_of_other_toolkits_suggest_ours():
    assert set(ELSEWHERE.values()) <= set(KEYS) and not set(ELSEWHERE) & set(KEYS)
    names = ELSEWHERE | {"epochs": "train_epoch", "num_steps": "max_steps", "timesteps": "timestep_num"}
    for theirs, ours in names.items():
        with pytest.raises(ConfigError, match=f"'{theirs}' is not known; did you mean {ours}?"):
            load_recipe(CONFIG, "Digits", [f"{theirs}=1"])


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text("01e.-,[]{}:~aé٣ /\n", max_size=5)
DIGITS = load_recipe(CONFIG, "Digits")


@settings(max_examples=200, deadline=None)  # on a busy machine slow examples are not failures
@example("class_names", [])
@given(st.sampled_from(sorted(KEYS)), st.recursive(VALUES, lambda values: st.lists(values, max_size=3)))
def test_any_value_is_converted_to_the_type_of_its_key_or_refused(key, value):
    try:
        recipe = check_recipe(DIGITS | {key: value}, "here")
    except ConfigError as error:
        assert str(error).startswith("here: ")
        return
    kind = KEYS[key].kind
    kind = list if kind == list[str] else kind
    assert recipe[key] is None or (recipe[key] in kind if isinstance(kind, tuple) else isinstance(recipe[key], kind))


def test_a_recipe_from_a_file_gets_the_defaults_of_newer_keys_but_must_describe_its_network():
    older = {key: value for key, value in DIGITS.items() if key not in ("warmup_steps", "timestep_density")}
    assert complete_recipe(older, "here") == DIGITS
    with pytest.raises(ConfigError, match="here lacks objective"):
        complete_recipe({key: value for key, value in DIGITS.items() if key != "objective"}, "here")
    with pytest.raises(ConfigError, match="here: dataset: 'Digitz'.* Digits"):
        complete_recipe(DIGITS | {"dataset": "Digitz"}, "here")
    with pytest.raises(ConfigError, match="here"):
        complete_recipe(None, "here")


def test_only_resumable_keys_may_change_when_a_run_is_resumed():
    recipe, fixed = load_recipe(CONFIG, "Digits"), {*KEYS, "dataset"} - RESUMABLE
    longer = recipe | {"max_steps": 9, "learning_rate": 1.0, "save_every": 3}
    assert changed_keys(recipe, longer, fixed) == []
    assert changed_keys(recipe, longer, RESUMABLE) == [
        "max_steps: was 2000, is 9",
        "learning_rate: was 0.001, is 1.0",
        "save_every: was 500, is 3",
    ]
    other = recipe | {"seed": 9, "objective": "pred_x0", "dataset": "Mnist"}
    assert sorted(changed_keys(recipe, other, fixed)) == [
        "dataset: was 'Digits', is 'Mnist'",
        "objective: was 'pred_v', is 'pred_x0'",
        "seed: was 0, is 9",
    ]
