"""What a network learns from that is to sample in few calls: where the trajectories of a frozen network end.

The frozen network, the teacher, is the one that the training starts from. Each trajectory is drawn from noise, and once
more from where it ended, with new noise at one of the `levels`. Trajectory i follows from (seed, i) and the sizes of
the classes, which decide its label. Only the ends are stored, with eight bits a value like any picture, in files of
PART trajectories in the run's folder. A training that is killed while it draws them goes on with the next file, and a
file of another size than expected is drawn again.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from datasets import normalize, picture_shape, to_uint8
from diffusion import SampleNoise, SampleSpec, sample
from diffusion.few_calls import levels
from diffusion.gaussian import GaussianDiffusion
from diffusion.interpolation import partial_spec
from files.atomic import clear_parts, write_file
from files.errors import ConfigError
from runs.labels import class_names, in_proportion, usual_guidance
from runs.network import load_state, without_weights
from runs.run import Run, checkpoint_of, in_batches, load_run
from training.batches import Batches
from training.held_out import HeldOut, Pictures

PART, AT_ONCE = 1000, 125  # trajectories in a file, and in a batch of the teacher, which has one level
FEATURE_WEIGHT = 2.0  # of 0 and 2, which was better on Fashion_Mnist
APART = 1_234_567  # added to the seed: samples of the same seed are to show what is drawn from other noise
AGAIN = 2**31  # added to the number of a trajectory, for its new noise


def with_teacher(recipe: dict) -> dict:
    """The recipe of a training on trajectories, with the teacher's guidance and the SHA-256 of its file.

    The guidance is in the pictures then, so that samples need none. Only a UNet has features to compare pictures in.
    ConfigError where a network cannot learn from trajectories, and for their keys without them.
    """
    if not recipe["trajectories"]:
        if of_others := [key for key in ("teacher_guidance", "feature_weight", "critic_weight") if recipe[key]]:
            raise ConfigError(f"{of_others[0]} is for a training on trajectories: set trajectories, or leave it out")
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
    # it does not learn to draw without its label
    return recipe | teacher | {"guidance": 1.0, "learned_guidance": 1.0, "label_dropout": 0.0}


def compares_features(recipe: dict) -> bool:
    """Whether a training compares pictures in features of the weights that it starts from."""
    return bool(recipe["trajectories"] and (recipe["feature_weight"] or recipe["critic_weight"]))


def draw_trajectories(
    recipe: dict, folder: Path, labels: np.ndarray | None, device: torch.device
) -> tuple[np.ndarray, np.ndarray | None, Pictures]:
    """The ends of N trajectories to learn from, as many as the recipe says, uint8 (2 N, C, H, W): first those from
    noise, then those that were drawn again; their labels, int64 (2 N,) or None; and the same of those held out.

    They are read from the folder of the run, or drawn into it. labels: of the pictures of the data; the trajectories
    have them in the same proportions. Raises CheckpointError if the teacher is missing, and ConfigError if it has other
    classes or betas, or cannot be guided.
    """
    T, names, learned = recipe["timestep_num"], class_names(recipe), recipe["trajectories"]
    count = learned + AT_ONCE * len(levels(T))  # held out: a batch of each level, whatever their first number is
    shape = picture_shape(recipe["image_size"], recipe["image_channel"])
    sizes = np.bincount(labels, minlength=len(names))[: len(names)].tolist() if names else []
    classes = np.array(in_proportion(sizes, count)) if names else None
    follows_from = [recipe[key] for key in ("teacher_sha256", "teacher_info", "teacher_guidance", "seed")]
    digest = hashlib.sha256(json.dumps([*follows_from, shape, sizes, levels(T)]).encode()).hexdigest()
    earlier = [other for other in folder.glob("trajectories_*") if any(other.glob("*.u8"))]
    place = folder / f"trajectories_{digest[:16]}"
    if earlier and place not in earlier:
        others = "as those in " + ", ".join(map(str, earlier))
        print(f"trajectories are not drawn {others}: a run that began with those ends on other bits")
    place.mkdir(exist_ok=True)
    clear_parts(place)
    ends, teacher = [], None
    for numbers in tqdm(list(in_batches(count, PART)), desc="trajectories", unit="file", leave=False):
        file = place / f"{numbers.start:08d}.u8"
        if not file.is_file() or file.stat().st_size != 2 * len(numbers) * np.prod(shape):
            if teacher is None:
                teacher = teacher_of(recipe).to(device)
                print(f"drawing {learned:,} trajectories and {count - learned} to hold out into {place}")
            parts = [numbers[i : i + AT_ONCE] for i in range(0, len(numbers), AT_ONCE)]
            first = [ends_of(teacher, recipe, part, classes) for part in parts]
            again = [ends_of(teacher, recipe, part, classes, x) for part, x in zip(parts, first, strict=True)]
            write_file(file, np.concatenate(first + again).tobytes())
        ends.append(np.fromfile(file, np.uint8).reshape(2, len(numbers), *shape))
    ends = np.concatenate(ends, axis=1)

    def both(part: slice) -> tuple[np.ndarray, np.ndarray | None]:
        return ends[:, part].reshape(-1, *shape), None if classes is None else np.tile(classes[part], 2)

    return *both(slice(learned)), ("held_out_loss", *both(slice(learned, None)))


def teacher_of(recipe: dict) -> Run:
    """The network that draws the trajectories. ConfigError if it has other sizes, classes or betas than the recipe, and
    CheckpointError if the training, which starts from its weights, is of another network.
    """
    teacher, (model, diffusion) = load_run(recipe["init_from"]), without_weights(recipe)
    if teacher.recipe["image_size"] != recipe["image_size"]:
        raise ConfigError(f"trajectories: {recipe['init_from']} draws other sizes: leave out image_size")
    if class_names(teacher.recipe) != class_names(recipe):
        remedy = "set data_path and num_classes as in its training"
        raise ConfigError(f"trajectories: {recipe['init_from']} has other classes: {remedy}")
    if not torch.equal(teacher.diffusion.alphas_cumprod, diffusion.alphas_cumprod):
        remedy = "leave out timestep_num and what sets the betas"
        raise ConfigError(f"trajectories: {recipe['init_from']} has other betas: {remedy}")
    load_state(model, teacher.model.state_dict(), recipe["init_from"], assign=True)
    return teacher


def level_of(number: int, timestep_num: int) -> int:
    """The timestep at which the trajectory with this number is drawn again."""
    return levels(timestep_num)[number // AT_ONCE % len(levels(timestep_num))]


def ends_of(
    teacher: Run, recipe: dict, numbers: range, classes: np.ndarray | None, before: np.ndarray | None = None
) -> np.ndarray:
    """Where the trajectories with these numbers, of one level, end: uint8 (len(numbers), C, H, W).

    They start from noise. With `before`, where they ended, they are drawn again: from there with new noise.
    """
    T, labels = recipe["timestep_num"], None if classes is None else classes.tolist()
    drawn, noise = teacher.noise((i + AGAIN * (before is not None) for i in numbers), recipe["seed"] + APART)
    try:
        network = teacher.labelled(numbers, labels, recipe["teacher_guidance"])
    except ValueError as error:
        raise ConfigError(f"teacher_guidance: {error}") from error
    if before is None:
        t, x_t = T - 1, drawn
    else:
        t, x_start = level_of(numbers.start, T), normalize(torch.from_numpy(before)).to(teacher.device)
        x_t = teacher.diffusion.q_sample(x_start, t, drawn)
    spec = partial_spec(SampleSpec.parse(recipe["teacher_info"]), t + 1, T, inverted=False)
    return to_uint8(sample(teacher.diffusion, network, x_t, spec, noise, t + 1)).cpu().numpy()


def starts_of(
    recipe: dict, diffusion: GaussianDiffusion, x_end: Tensor, before: Tensor, numbers: np.ndarray, again: np.ndarray
) -> tuple[Tensor, Tensor]:
    """(t, noise) of trajectories that end at x_end (B, C, H, W): the timestep that they start at, int64 (B,), and the
    noise that leads from x_end to x_t there, like x_end.

    numbers: int64 (B,). again: bool (B,), whether each was drawn again, from `before`; the others have x_end there.
    """
    T, noise = recipe["timestep_num"], SampleNoise(recipe["seed"] + APART, (numbers + AGAIN * again).tolist())
    t = [level_of(i, T) if redrawn else T - 1 for i, redrawn in zip(numbers.tolist(), again, strict=True)]
    t = torch.tensor(t).to(x_end.device)
    x_t = diffusion.q_sample(before, t, noise.draw(x_end.shape, x_end.dtype, x_end.device))
    return t, diffusion.predict_noise(x_end, x_t, t)


class TrajectoryBatches(Batches):
    """Batches of trajectories: x_start is where each ends."""

    def drawn(
        self, step: int, pixels: Tensor, generator: torch.Generator, progress: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(x_end, t, noise), see `starts_of`: nothing is left to be drawn, and nothing is flipped."""
        rows, half = self.indices(step)[self.share], len(self.images) // 2
        x_end, before = normalize(pixels), normalize(next(self.fetched([rows % half])))
        return x_end, *starts_of(self.recipe, self.diffusion, x_end, before, rows % half, again=rows >= half)


class HeldOutTrajectories(HeldOut):
    """The loss of the trajectories that `draw_trajectories` held out."""

    def __init__(self, recipe: dict, pictures: Pictures, *args):
        super().__init__(recipe, pictures, *args)
        _, ends, _ = pictures
        half, device = len(ends) // 2, self.x_start.device
        before = normalize(torch.from_numpy(ends[self.rows % half])).to(device)
        numbers, diffusion = self.rows % half + recipe["trajectories"], without_weights(recipe)[1].to(device)
        self.t, self.noise = starts_of(recipe, diffusion, self.x_start, before, numbers, again=self.rows >= half)
