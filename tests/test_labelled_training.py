"""Trainings with labels: what they store, resuming, several processes, and what is refused."""

import signal

import pytest
import torch
from helpers.networks import noisy
from helpers.pictures import pixels
from helpers.scripts import LABELLED, refused, state_hash, train, training

import train_solver
from runs.network import build
from runs.pretrained import load_pretrained
from runs.run import load_run
from training.optimizer import learning_rate


def test_a_training_stores_the_number_and_the_names_of_its_classes(labelled):
    run = load_run(labelled)
    assert run.recipe["num_classes"] == 10 and run.recipe["class_names"] == [str(i) for i in range(10)]
    assert run.model.label_embed.weight.shape == (11, 32)
    preview = pixels(labelled.with_name("preview_00000006.png"))
    assert len(preview) == 8 + 9 * (32 + 8)  # nine samples, each in a row of its class


@pytest.mark.slow
def test_a_training_with_labels_resumes_exactly(tmp_path):
    settings = LABELLED | {"dropout": 0.1, "gradient_accumulation": 2, "num_workers": 2, "horizontal_flip": "true"}
    assert train(tmp_path / "whole", settings=settings).returncode == 0
    assert train(tmp_path / "parts", settings=settings | {"max_steps": 4}).returncode == 0
    again = train(tmp_path / "parts", settings=settings)
    assert again.returncode == 0 and "resuming from step 4" in again.stdout
    ends = [state_hash(tmp_path / name / "digits" / "digits.pt") for name in ("whole", "parts")]
    assert ends[0] == ends[1]
    refused(train(tmp_path / "parts", settings=settings | {"num_classes": "null"}), 1, "num_classes")


def test_the_second_half_of_a_training_learns_guidance_and_resumes_exactly(tmp_path, monkeypatch):
    settings = LABELLED | {"learned_guidance": 3, "loss_type": "l2", "save_every": 3, "sample_every": 1000}
    rate, ends = learning_rate, {}
    for name, changed in (("whole", {}), ("parts", {}), ("plain", {"learned_guidance": 1})):
        stop = [2, 4] if name == "parts" else []  # before and after the half

        def stopping(recipe, step, steps, stop=stop):
            if step in stop:
                stop.remove(step)
                signal.raise_signal(signal.SIGTERM)
            return rate(recipe, step, steps)

        monkeypatch.setattr(train_solver, "learning_rate", stopping)
        codes = [train(tmp_path / name, settings=settings | changed).returncode for _ in range(len(stop) + 1)]
        assert codes == [143] * (len(codes) - 1) + [0]
        folder = tmp_path / name / "digits"
        ends[name] = [state_hash(folder / file) for file in ("digits.pt", "digits.1.pt")]
    assert ends["whole"][0] == ends["parts"][0] != ends["plain"][0]
    assert ends["whole"][1] == ends["plain"][1]  # after three of six steps


def test_trainings_that_cannot_have_labels_are_refused(tmp_path):
    block = f"data_path: {tmp_path / 'p'}, image_size: 8"
    (tmp_path / "config.yaml").write_text(f"{{Train_Setting: {{}}, Train_Data: {{Mine: {{{block}}}}}}}")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.png").write_bytes(b"")
    mine = ("--config", tmp_path / "config.yaml")
    refused(train(tmp_path, *mine, data_name="Mine", settings=LABELLED), 1, "subfolders")
    refused(train(tmp_path, settings={"num_classes": 7}), 2, "num_classes=7", "10 classes")
    refused(train(tmp_path, settings={"num_classes": "many"}), 2, "num_classes must be", "or auto or null")
    refused(train(tmp_path, settings={"label_dropout": 1.5}), 2, "label_dropout must be")
    refused(train(tmp_path, settings={"learned_guidance": 2}), 2, "learned_guidance needs labels")
    for key in ("guidance", "learned_guidance"):
        refused(train(tmp_path, settings=LABELLED | {"label_dropout": 0, key: 2}), 2, f"set {key}=1")
    plan = train(tmp_path, "--dry_run", "--data_path", tmp_path / "none", data_name="Cifar10", settings=LABELLED)
    assert plan.returncode == 0 and "not found yet" in plan.stdout and "num_classes: auto" in plan.stdout


def test_weights_go_on_with_other_classes(labelled, trained, tmp_path, capsys):
    """At first a known class draws what it drew, a new one and a network without labels what no label draws."""
    first, x, t = load_run(labelled), noisy(2, 1, 8, 8), torch.tensor([3, 500])

    def tuned(file, **classes):
        recipe = first.recipe | {"init_from": str(file)} | classes
        model, _ = build(recipe)
        load_pretrained(model, recipe)
        return model.eval()

    model, label = tuned(labelled, num_classes=3, class_names=["7", "rose", "2"]), torch.tensor
    assert "1 of 3 are new" in capsys.readouterr().out
    pairs = [(model(x, t, label([0, 2])), first.model(x, t, label([7, 2])))]
    pairs += [(model(x, t, label([1, 3])), first.model(x, t))]
    pairs += [(tuned(labelled, num_classes=None, class_names=None)(x, t), first.model(x, t))]
    pairs += [(tuned(trained)(x, t, label([4, 10])), load_run(trained).model(x, t))]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)


def test_a_block_with_num_classes_auto_has_the_classes_of_its_data(trained, tmp_path):
    block = "{num_classes: auto, max_steps: 1, sample_num: 10, preview_info: DDIM_1_0p0}"
    (tmp_path / "config.yaml").write_text(f"Train_Data: {{Digits: {block}}}\nTrain_Setting: {{}}")
    args = ("--config", tmp_path / "config.yaml", "--data_name", "Digits", "--save_dir", tmp_path)
    run = training(*args, "--init_from", trained)
    assert run.returncode == 0 and "10 of 10 are new" in run.stdout, run.stderr
    assert load_run(tmp_path / "digits" / "digits.pt").recipe["num_classes"] == 10
    again = training(*args, "--init_from", trained, "--set", "max_steps=2")
    assert again.returncode == 0 and "resuming from step 1" in again.stdout, again.stderr
