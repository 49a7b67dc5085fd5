"""Builds the folder of a web page that draws with trained networks in the browser:

python -m sharing.onnx_page results/page onnxruntime-web.tgz checkpoints/cifar10.safetensors …

It holds the files of page/, ONNX Runtime Web, each network as ONNX, and networks.json with their facts. What is large
is packed with gzip: the page unpacks it, because a simple server does not pack.
"""

import gzip
import json
import shutil
import tarfile
import zlib
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from datasets import picture_shape
from files.errors import ConfigError
from runs import load_run
from runs.labels import class_names
from runs.run import Run
from utils.command_line import ArgumentParser, run

RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")  # of onnxruntime-web
FACTS = ("image_size", "image_channel", "objective", "clip_denoised")  # of the recipe, which the page must know


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the page")
    parser.add_argument("runtime", type=Path, help="the archive that `npm pack onnxruntime-web` leaves")
    parser.add_argument("checkpoints", type=Path, nargs="+", help="of square pictures")
    args = parser.parse_args()
    if len({checkpoint.stem for checkpoint in args.checkpoints}) < len(args.checkpoints):
        raise ConfigError("two checkpoints of one name: the page names networks by their files, so rename one")
    runs = {checkpoint: for_page(checkpoint) for checkpoint in args.checkpoints}
    shutil.copytree(Path(__file__).parent.parent / "page", args.folder, dirs_exist_ok=True)
    try:
        with tarfile.open(args.runtime) as archive:
            for name in RUNTIME:
                write(args.folder / name, archive.extractfile(f"package/dist/{name}").read())
    except (EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        raise ConfigError(f"{args.runtime} is damaged: delete it and run `npm pack` again ({error})") from error
    networks = []
    for checkpoint, trained in runs.items():
        write(args.folder / f"{checkpoint.stem}.onnx", as_onnx(trained, args.folder / "part.onnx"))
        facts = {"name": checkpoint.stem, "classes": class_names(trained.recipe)}
        facts |= {key: trained.recipe[key] for key in FACTS}
        networks.append(facts | {"alphas_cumprod": trained.diffusion.alphas_cumprod.tolist()})
    (args.folder / "networks.json").write_text(json.dumps(networks), encoding="utf-8")
    size = sum(file.stat().st_size for file in args.folder.iterdir())
    print(f"{args.folder}: {', '.join(file.stem for file in args.checkpoints)}, {size / 1e6:.1f} MB")


def for_page(checkpoint: Path) -> Run:
    """A network that the page can draw with. ConfigError for one that only knows guidance 1, or is not square."""
    trained = load_run(checkpoint)
    if class_names(trained.recipe) and not trained.recipe["label_dropout"]:
        raise ConfigError(f"{checkpoint}: the page has guidance, and this network only knows guidance 1")
    if not isinstance(trained.recipe["image_size"], int):
        raise ConfigError(f"{checkpoint}: the page shows square pictures, not {trained.recipe['image_size']}")
    return trained


def as_onnx(trained: Run, file: Path) -> bytes:
    """The network as ONNX: x float32 (B, C, H, W), t int64 (B,) and, if it knows classes, labels int64 (B,) -> output.

    file: to write to on the way. The older of torch's two exporters is used: it takes a tenth of the time.
    """
    shape = picture_shape(trained.recipe["image_size"], trained.recipe["image_channel"])
    inputs = {"x": torch.zeros(2, *shape), "t": torch.zeros(2, dtype=torch.int64)}
    if class_names(trained.recipe):
        inputs["labels"] = torch.zeros(2, dtype=torch.int64)
    torch.onnx.export(
        trained.model, tuple(inputs.values()), file, input_names=list(inputs), output_names=["output"],
        dynamic_axes={name: {0: "B"} for name in (*inputs, "output")}, opset_version=18, dynamo=False,
    )  # fmt: skip
    model = onnx.load(file)
    file.unlink()
    halve(model.graph)
    return model.SerializeToString()


def halve(graph: onnx.GraphProto) -> None:
    """Stores weights that are float16 numbers, as shared weights are, as float16, and casts them to float32 in use."""
    for tensor in graph.initializer:
        weights, name = numpy_helper.to_array(tensor), tensor.name
        if weights.dtype == np.float32 and np.array_equal(half := weights.astype(np.float16), weights):
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
            graph.node.insert(0, helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT))


def write(file: Path, content: bytes) -> None:
    """Writes a file as it is if it is a script, and packed if it is large."""
    if file.suffix == ".mjs":
        file.write_bytes(content)
    else:
        Path(f"{file}.gz").write_bytes(gzip.compress(content, mtime=0))


if __name__ == "__main__":
    run(main)
