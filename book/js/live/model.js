// The model: fetched with progress, opened in a worker, and called as the library calls it.

import { tokens } from "./prompt.js";

const NETWORKS = ["unet", "decoder", "text", "judge"];

// `onProgress` is handed the share of the bytes that have arrived.
export async function load(base, manifest, onProgress) {
  const sizes = manifest.files;
  const total = Object.values(sizes).reduce((sum, { bytes }) => sum + bytes, 0);
  let arrived = 0;
  const fetched = {};
  for (const [name, { hash }] of Object.entries(sizes))
    fetched[name] = await download(new URL(`${name}?${hash}`, base), (bytes) =>
      onProgress((arrived += bytes) / total),
    );
  const worker = new Worker(new URL("worker.js", base), { type: "module" });
  const call = caller(worker);
  const networks = Object.fromEntries(NETWORKS.map((name) => [name, fetched[`${name}.onnx`]]));
  await call("open", { wasm: fetched[manifest.wasm], networks });
  return new Model(call, manifest);
}

async function download(url, onBytes) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url.pathname} could not be fetched (${answer.status})`);
  const parts = [],
    reader = answer.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    onBytes(value.length);
  }
  return new Blob(parts).arrayBuffer();
}

// Calls wait for each other: a network computes one thing at a time.
function caller(worker) {
  const waiting = new Map();
  let last = Promise.resolve(),
    count = 0;
  worker.onmessage = ({ data: { id, result, error } }) => {
    const [resolve, reject] = waiting.get(id);
    waiting.delete(id);
    if (error) reject(new Error(error));
    else resolve(result);
  };
  // A worker that does not start says so here, and answers nothing.
  worker.onerror = (event) => {
    for (const [, reject] of waiting.values())
      reject(new Error(event.message || "the worker did not start"));
  };
  const send = (call, values) =>
    new Promise((resolve, reject) => {
      waiting.set(++count, [resolve, reject]);
      worker.postMessage({ id: count, call, values });
    });
  return (call, values) => {
    const answer = last.then(() => send(call, values));
    last = answer.catch(() => {});
    return answer;
  };
}

class Model {
  constructor(call, manifest) {
    this.call = call;
    this.manifest = manifest;
    this.shape = manifest.shape;
    this.size = this.shape.reduce((product, n) => product * n);
  }

  // What the UNet is told of an empty prompt and of `text`: two rows.
  async context(text) {
    const table = this.manifest.tokens;
    const ids = [...tokens("", table), ...tokens(text, table)];
    return this.call("run", {
      name: "text",
      inputs: { ids: [BigInt64Array.from(ids, BigInt), [2, table.length]] },
    });
  }

  // The noise that the UNet sees in the latents, without and with the prompt.
  async noises(latents, timestep, context) {
    const rows = new Float32Array(2 * this.size);
    rows.set(latents);
    rows.set(latents, this.size);
    const { length, width } = this.manifest.tokens;
    const out = await this.call("run", {
      name: "unet",
      inputs: {
        sample: [rows, [2, ...this.shape]],
        timestep: [BigInt64Array.of(BigInt(timestep)), [1]],
        context: [context, [2, length, width]],
      },
    });
    return [out.subarray(0, this.size), out.subarray(this.size)];
  }

  // Latents as a picture. An ImageData clips and rounds as the library does.
  async picture(latents) {
    const out = await this.call("run", {
      name: "decoder",
      inputs: { latents: [latents, [1, ...this.shape]] },
    });
    const side = Math.sqrt(out.length / 3),
      image = new ImageData(side, side);
    for (let i = 0; i < side * side; i++) {
      for (let c = 0; c < 3; c++)
        image.data[4 * i + c] = 255 * (out[c * side * side + i] / 2 + 0.5);
      image.data[4 * i + 3] = 255;
    }
    return image;
  }
  // What the judge says of a picture: its features, then its heads' logits.
  async judged(image) {
    const area = image.width * image.height,
      pixels = new Float32Array(3 * area);
    for (let i = 0; i < area; i++)
      for (let c = 0; c < 3; c++) pixels[c * area + i] = image.data[4 * i + c] / 255;
    return this.call("run", {
      name: "judge",
      inputs: { images: [pixels, [1, 3, image.height, image.width]] },
    });
  }
}
