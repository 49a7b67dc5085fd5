// The networks of networks.json, run by ONNX Runtime Web.

import * as ort from "./ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1; // more need headers that simple servers do not send
ort.env.wasm.proxy = true; // in a worker, so that the page stays alive

/** The facts of all networks: name, image_size, classes, … (see sharing/onnx_page.py). */
export async function networks() {
  return (await fetch("networks.json")).json();
}

/** The network: a function of x, a Float32Array of (B, C, H, W), t, a number, and labels, B numbers. */
export async function load({ name, image_size, image_channel, classes }) {
  ort.env.wasm.wasmBinary ??= await unpacked("ort-wasm-simd-threaded.wasm.gz");
  const session = await ort.InferenceSession.create(new Uint8Array(await unpacked(`${name}.onnx.gz`)));
  return async (x, t, labels) => {
    const shape = [x.length / (image_channel * image_size ** 2), image_channel, image_size, image_size];
    const integers = (numbers) => new ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), [shape[0]]);
    const inputs = { x: new ort.Tensor("float32", x.slice(), shape), t: integers(Array(shape[0]).fill(t)) };
    if (classes.length) inputs.labels = integers(labels);
    return (await session.run(inputs)).output.data;
  };
}

async function unpacked(file) {
  const response = await fetch(file);
  if (!response.ok) throw new Error(`${file}: ${response.status}`);
  return new Response(response.body.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}
