"""Builds the folder of a web page that draws with trained networks in the browser:

python -m sharing.onnx_page results/page onnxruntime-web.tgz checkpoints/cifar10.safetensors …

It holds the files of page/, ONNX Runtime Web, each network as ONNX, and networks.json with their facts. What is large
is packed with gzip: the page unpacks it, because a simple server does not pack.
"""

import gzip
import json
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from runs import load_run
from runs.labels import class_names, usual_guidance
from runs.run import Run

PAGE = Path(__file__).parent.parent / "page"
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")  # of onnxruntime-web


def build(folder: Path, runtime: Path, checkpoints: list[Path]) -> None:
    """Writes the page. runtime: the archive that `npm pack onnxruntime-web` leaves."""
    shutil.copytree(PAGE, folder, dirs_exist_ok=True)
    with tarfile.open(runtime) as archive:
        for name in RUNTIME:
            content = archive.extractfile(f"package/dist/{name}").read()
            if name.endswith(".wasm"):
                write_packed(folder / f"{name}.gz", content)
            else:
                (folder / name).write_bytes(content)
    facts = []
    for checkpoint in checkpoints:
        trained = load_run(checkpoint)
        write_packed(folder / f"{checkpoint.stem}.onnx.gz", as_onnx(trained, folder / "part.onnx"))
        facts.append({"name": checkpoint.stem, **facts_of(trained)})
    (folder / "networks.json").write_text(json.dumps(facts), encoding="utf-8")


def as_onnx(trained: Run, file: Path) -> bytes:
    """The network as ONNX: x float32 (B, C, H, W), t int64 (B,) and, if it knows classes, labels int64 (B,) -> output.

    file: to write to on the way. The older of torch's two exporters is used: it takes a tenth of the time.
    """
    recipe = trained.recipe
    inputs = {"x": torch.zeros(2, recipe["image_channel"], recipe["image_size"], recipe["image_size"])}
    inputs["t"] = torch.zeros(2, dtype=torch.int64)
    if class_names(recipe):
        inputs["labels"] = torch.zeros(2, dtype=torch.int64)
    batches = {name: {0: "B"} for name in (*inputs, "output")}
    torch.onnx.export(
        trained.model, tuple(inputs.values()), file, input_names=list(inputs), output_names=["output"],
        dynamic_axes=batches, opset_version=18, dynamo=False,
    )  # fmt: skip
    model = onnx.load(file)
    file.unlink()
    halve(model.graph)
    return model.SerializeToString()


def halve(graph: onnx.GraphProto) -> None:
    """Stores weights that are float16 numbers, as shared weights are, as float16, and casts them to float32 in use."""
    casts = []
    for tensor in graph.initializer:
        weights, name = numpy_helper.to_array(tensor), tensor.name
        if weights.dtype == np.float32 and np.array_equal(half := weights.astype(np.float16), weights):
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
            casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def facts_of(trained: Run) -> dict:
    """What the page must know of a network."""
    keys = ("image_size", "image_channel", "objective", "clip_denoised")
    facts = {key: trained.recipe[key] for key in keys}
    facts |= {"classes": class_names(trained.recipe), "guidance": usual_guidance(trained.recipe)}
    return facts | {"alphas_cumprod": trained.diffusion.alphas_cumprod.tolist()}


def write_packed(file: Path, content: bytes) -> None:
    file.write_bytes(gzip.compress(content, mtime=0))


if __name__ == "__main__":
    target, archive, *networks = map(Path, sys.argv[1:])
    build(target, archive, networks)
    size = sum(file.stat().st_size for file in target.iterdir())
    print(f"{target}: {', '.join(file.stem for file in networks)}, {size / 1e6:.1f} MB")
