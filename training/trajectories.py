"""What a network learns from that is to sample in few calls: where the trajectories of a frozen network end.

The frozen network, the teacher, is the one that the training starts from. Trajectory i follows from (seed, i) alone:
its noise, and with the sizes of the classes its label. Only the ends are stored, with eight bits a value like any
picture, in files of PART in the run's folder. A training that is killed while it draws them goes on with the next file,
and a file of another size than expected is drawn again.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datasets import normalize, picture_shape, to_uint8
from diffusion import SampleNoise, SampleSpec, sample
from diffusion.few_calls import first_or_any
from diffusion.gaussian import Model
from files.atomic import clear_parts, write_file
from files.errors import ConfigError
from runs.labels import class_names, in_proportion, usual_guidance
from runs.run import Run, checkpoint_of, in_batches, load_run
from training.batches import Batches
from training.held_out import PICTURES, HeldOut

PART, AT_ONCE = 1000, 125  # trajectories in a file, and in a batch of the teacher
FEATURE_WEIGHT = 2.0  # of 0 and 2, which was better on Fashion_Mnist
APART = 1_234_567  # added to the seed: samples of the same seed are to show what is drawn from other noise


def with_teacher(recipe: dict) -> dict:
    """The recipe of a training on trajectories, with the teacher's guidance and the SHA-256 of its file.

    The guidance is in the pictures then, so that samples need none. Only a UNet has features to compare pictures in.
    ConfigError where a network cannot learn from trajectories.
    """
    if not recipe["trajectories"]:
        return recipe
    if not recipe["init_from"]:
        raise ConfigError("trajectories needs init_from: the network that draws them and that the training starts from")
    if recipe["objective"] == "pred_noise":
        raise ConfigError("trajectories: from noise alone, a network with objective=pred_noise predicts no picture")
    if recipe["trajectories"] < recipe["batch_size"]:
        too_few = f"trajectories={recipe['trajectories']} are fewer than batch_size={recipe['batch_size']}"
        raise ConfigError(f"{too_few}: draw more, or set a smaller batch_size")
    file, guidance = checkpoint_of(recipe["init_from"]), recipe["teacher_guidance"]
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
    teacher = {"teacher_sha256": sha256, "teacher_guidance": usual_guidance(recipe) if guidance is None else guidance}
    has_features = recipe["network"] == "unet" and not recipe["diffusers_unet"]
    if recipe["feature_weight"] is None:
        teacher["feature_weight"] = FEATURE_WEIGHT * has_features
    for key in ("feature_weight", "critic_weight"):
        if recipe[key] and not has_features:
            raise ConfigError(f"{key}: only a unet of our own has features to compare: set {key}=0")
    return recipe | teacher | {"guidance": 1.0, "label_dropout": 0.0}  # it does not learn to draw without its label


def draw_trajectories(
    recipe: dict, folder: Path, labels: np.ndarray | None, device: torch.device
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, np.ndarray | None]:
    """The ends of trajectories to learn from, as many as the recipe says, uint8 (N, C, H, W), and their labels, int64
    (N,) or None; and those of 256 more, which are held out.

    They are read from the folder of the run, or drawn into it. labels: of the pictures of the data; the trajectories
    have them in the same proportions. Raises CheckpointError if the teacher is missing, and ConfigError if it has other
    classes or cannot be guided.
    """
    count, names = recipe["trajectories"] + PICTURES, class_names(recipe)
    shape = picture_shape(recipe["image_size"], recipe["image_channel"])
    sizes = np.bincount(labels, minlength=len(names))[: len(names)].tolist() if names else []
    classes = np.array(in_proportion(sizes, count)) if names else None
    follows_from = [recipe[key] for key in ("teacher_sha256", "teacher_info", "teacher_guidance", "seed")]
    digest = hashlib.sha256(json.dumps([*follows_from, shape, sizes]).encode()).hexdigest()
    folder, ends, teacher = folder / f"trajectories_{digest[:16]}", [], None
    folder.mkdir(exist_ok=True)
    clear_parts(folder)
    for numbers in tqdm(list(in_batches(count, PART)), desc="trajectories", unit="file", leave=False):
        file = folder / f"{numbers.start:08d}.u8"
        if not file.is_file() or file.stat().st_size != len(numbers) * np.prod(shape):
            if teacher is None:
                teacher = load_run(recipe["init_from"]).to(device)
                if class_names(teacher.recipe) != names:
                    remedy = "set data_path and num_classes as in its training"
                    raise ConfigError(f"trajectories: {recipe['init_from']} has other classes: {remedy}")
                print(f"drawing {recipe['trajectories']:,} trajectories, and {PICTURES} to hold out, into {folder}")
            parts = [range(i, min(i + AT_ONCE, numbers.stop)) for i in range(numbers.start, numbers.stop, AT_ONCE)]
            write_file(file, b"".join(ends_of(teacher, recipe, part, classes).tobytes() for part in parts))
        ends.append(np.fromfile(file, np.uint8).reshape(len(numbers), *shape))
    ends, learned, held_out = np.concatenate(ends), slice(recipe["trajectories"]), slice(recipe["trajectories"], None)
    own, theirs = (None, None) if classes is None else (classes[learned], classes[held_out])
    return ends[learned], own, ends[held_out], theirs


def ends_of(teacher: Run, recipe: dict, numbers: range, classes: np.ndarray | None) -> np.ndarray:
    """Where the trajectories with these numbers end: uint8 (len(numbers), C, H, W)."""
    x_T, noise = teacher.noise(numbers, recipe["seed"] + APART)
    labels = None if classes is None else classes.tolist()
    try:
        network = teacher.labelled(numbers, labels, recipe["teacher_guidance"])
    except ValueError as error:
        raise ConfigError(f"teacher_guidance: {error}") from error
    spec = SampleSpec.parse(recipe["teacher_info"])
    return to_uint8(sample(teacher.diffusion, network, x_T, spec, noise)).cpu().numpy()


def starts_of(recipe: dict, numbers: Iterable[int], device: torch.device) -> Tensor:
    """The noise that the trajectories with these numbers start from: float32 (B, C, H, W)."""
    numbers, shape = list(numbers), picture_shape(recipe["image_size"], recipe["image_channel"])
    noise = SampleNoise(recipe["seed"] + APART, numbers)
    return noise.draw((len(numbers), *shape), torch.float32, device)


class TrajectoryBatches(Batches):
    """Batches of trajectories: x_start is where each ends, and noise where it starts."""

    def drawn(self, step: int, pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """As of `Batches`, but for the noise, for a second half of timesteps T - 1, and without flips."""
        t = first_or_any(self.draw_timesteps(self.batch_size, generator), self.recipe["timestep_num"])[self.share]
        return normalize(pixels), t, starts_of(self.recipe, self.indices(step)[self.share].tolist(), self.device)


class HeldOutTrajectories(HeldOut):
    """The loss of the trajectories that `draw_trajectories` held out."""

    def __init__(
        self, recipe: dict, ends: np.ndarray, network: Model, losses: Callable[..., Tensor], device: torch.device,
        labels: np.ndarray | None = None,
    ):  # fmt: skip
        recipe = recipe | {"split": "all"}  # which takes these as they are, instead of pictures of another split
        super().__init__(recipe, ends, network, losses, device, labels)
        numbers = range(recipe["trajectories"], recipe["trajectories"] + len(ends))
        self.name, self.noise = "held_out_loss", starts_of(recipe, numbers, device)
        self.t = first_or_any(self.t, recipe["timestep_num"])


def kinds(recipe: dict) -> tuple[type[Batches], type[HeldOut]]:
    """What a training sees, and what its held-out loss is of."""
    return (TrajectoryBatches, HeldOutTrajectories) if recipe["trajectories"] else (Batches, HeldOut)
