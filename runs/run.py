"""A trained network that can be sampled from, and loading it from any file that holds one."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from datasets import picture_shape
from diffusion import GaussianDiffusion, SampleNoise, SampleSpec, sample
from diffusion.gaussian import Model
from diffusion.guidance import with_labels
from files.errors import CheckpointError, ConfigError
from runs.checkpoint import checked, torch_load
from runs.labels import class_names, class_numbers, usual_guidance
from runs.network import build, load_state, without_weights
from runs.published import from_published, is_published
from runs.recipe import coerce
from runs.shared_weights import load_shared_weights
from utils.device import ready_to_sample, use_tf32


@dataclass
class Run:
    """A trained network in eval mode, with the diffusion and the recipe of its training.

    It computes on the CPU in float32 until `to` is called. network(x, t) is the model as it is sampled from.
    """

    model: nn.Module
    diffusion: GaussianDiffusion
    recipe: dict
    step: int
    weights: str  # "ema" (averaged) or "raw"
    device: torch.device = torch.device("cpu")
    network: Model | None = None

    def __post_init__(self):
        self.network = self.network or self.model

    def to(self, device: torch.device, precision: str = "fp32", compile: bool = False) -> "Run":
        """Moves the run to a device, to sample in a precision (see `utils.device.ready_to_sample`). Returns self.

        On a CPU with oneDNN the network computes in channels last, which is 1.1 to 1.3 times as fast in any batch.
        """
        if device.type == "cuda":
            use_tf32(False)  # fp32 means fp32: with few steps the samples would differ visibly
        last = device.type == "cpu" and torch.backends.mkldnn.is_available()
        self.model.to(memory_format=torch.channels_last if last else torch.contiguous_format)
        self.device, self.network = device, ready_to_sample(self.model, device, precision, compile)
        self.diffusion.to(device)
        return self

    def noise(self, indices: Iterable[int], seed: int) -> tuple[Tensor, SampleNoise]:
        """x_T of the samples with these numbers, (B, C, H, W), and the noise of their reverse process."""
        indices, shape = list(indices), picture_shape(self.recipe["image_size"], self.recipe["image_channel"])
        noise = SampleNoise(seed, indices)
        return noise.draw((len(indices), *shape), torch.float32, self.device), noise

    def labelled(
        self, indices: Iterable[int], labels: Sequence[int | str] | None = None, guidance: float | None = None
    ) -> Model:
        """The network for the samples with these numbers, as a function of (x, t): sample i is of the class
        labels[i % len(labels)].

        labels, guidance: see `class_numbers`, which raises ValueError, and `with_labels`. guidance=None: the recipe's.
        """
        guidance = usual_guidance(self.recipe) if guidance is None else guidance
        classes = class_numbers(self.recipe, labels, guidance)
        if classes is None:
            return self.network
        numbers = torch.tensor([classes[i % len(classes)] for i in indices], device=self.device)
        return with_labels(self.network, numbers, guidance, no_label=len(class_names(self.recipe)))

    def sample(self, count: int, spec: SampleSpec | str, seed: int = 0, batch_size: int = 100, **labels) -> Tensor:
        """Samples 0 to count - 1: float32 (count, C, H, W) on the CPU, in [-1, 1] if the diffusion clips.

        spec: or its text, such as "DPMpp_20_0p0". seed: sample i depends only on it, on i and on its label.
        labels: `labels` and `guidance` of `labelled`; by default of each class in turn, with the recipe's guidance.
        Raises ValueError for a count below 1, and for a spec or labels that do not fit.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count}")
        return torch.cat(list(self.batches(count, spec, seed, batch_size, **labels)))

    def batches(
        self, count: int, spec: SampleSpec | str, seed: int = 0, batch_size: int = 100, **labels
    ) -> Iterator[Tensor]:
        """The same, batch by batch, for more samples than fit into memory."""
        spec = SampleSpec.parse(spec) if isinstance(spec, str) else spec
        batches = in_batches(count, batch_size)
        for indices in tqdm(batches, desc=str(spec), total=-(-count // batch_size), leave=False):
            x_T, noise = self.noise(indices, seed)
            yield sample(self.diffusion, self.labelled(indices, **labels), x_T, spec, noise).cpu()


def in_batches(count: int, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[range]:
    """0 to count - 1, cut into ranges of batch_size; the last may be shorter. Process `rank` gets each world-th."""
    for start in range(0, count, batch_size)[rank::world]:
        yield range(count)[start : start + batch_size]


def load_run(file: str | Path, weights: str = "ema", **given) -> Run:
    """Loads a training checkpoint, a .safetensors with its recipe, or a published checkpoint, to the CPU.

    file: or the folder of a run, see `checkpoint_of`.
    weights: "ema" (averaged, where the file has them) or "raw" (of the last step).
    given: recipe keys or None. They must agree with the recipe in the file (ConfigError). A published checkpoint has no
    recipe: it takes these keys instead, and needs image_size.
    Raises CheckpointError for a file that is missing, damaged or of another kind.
    """
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights must be ema or raw, not {weights!r}")
    file, step = checkpoint_of(file), 0
    if not file.exists():
        raise CheckpointError(f"{file} does not exist")
    if file.is_dir():
        raise CheckpointError(f"{file} is a folder: convert.py turns a diffusers folder into a .safetensors")
    if file.suffix.lower() == ".safetensors":
        tensors, facts = load_shared_weights(file)
        recipe, step, has = facts["recipe"], facts["step"], facts["weights"]
    elif is_published(content := torch_load(file)):
        (tensors, recipe), has = from_published(content, file, given), "raw"
    else:
        content = checked(content, file)
        tensors, recipe = content[{"ema": "ema", "raw": "model"}[weights]], content["recipe"]
        step, has = content["step"], weights
    check_given(recipe, has, file, weights, given)
    try:
        model, diffusion = without_weights(recipe)
    except ConfigError as error:
        raise CheckpointError(f"{file}: its recipe: {error}") from error
    load_state(model, tensors, file, assign=True)
    if any(buffer.is_meta for buffer in model.buffers()):  # of a network of diffusers; they are not in the file
        model = build(recipe)[0]
        load_state(model, tensors, file)
    return Run(model.eval(), diffusion, recipe, step, has)


def checkpoint_of(path: str | Path) -> Path:
    """The checkpoint in the folder of a run, which has the folder's name; any other path as it is."""
    path = Path(path)
    inside = path / f"{path.absolute().name}.pt"
    return inside if inside.is_file() else path


def check_given(recipe: dict, has: str, file: Path, weights: str, given: dict) -> None:
    """CheckpointError if raw weights are asked for and the file has others; ConfigError if a given key disagrees."""
    if weights == "raw" != has:
        raise CheckpointError(f"{file} holds only the averaged weights: leave out --weights raw")
    trained = recipe | {"beta_schedule": "betas of its own"} if recipe["betas"] else recipe
    for key, value in given.items():
        if value is not None and coerce(str(file), key, value) != trained[key]:
            raise ConfigError(f"{key}={value}: {file} was trained with {trained[key]}: leave it out")
