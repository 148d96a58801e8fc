// The models: each is fetched with progress, opened in a worker, and called as the library does.

import { tokens } from "./prompt.js";

const SHARED = ["decoder.onnx", "judge.onnx"];

// What loads a model by its name. `onProgress` is handed the share of the bytes that have arrived.
// What the models share is fetched once.
export function loader(base, manifest) {
  const opened = new Set();
  let call = null;
  return async (name, onProgress) => {
    const networks = [`${name}.onnx`, `${name}-text.onnx`, ...SHARED],
      wanted = [manifest.wasm, ...networks].filter((file) => !opened.has(file)),
      fetched = await files(base, manifest.files, wanted, onProgress),
      { [manifest.wasm]: wasm, ...fresh } = fetched;
    const caller = call ?? worker(base);
    await caller("open", { wasm, networks: fresh });
    call = caller; // only now: a worker that did not start is not asked again
    for (const file of wanted) opened.add(file);
    return new Model(call, manifest, name);
  };
}

async function files(base, known, wanted, onProgress) {
  const total = wanted.reduce((sum, name) => sum + known[name].bytes, 0),
    fetched = {};
  let arrived = 0;
  for (const name of wanted)
    fetched[name] = await download(new URL(`${name}?${known[name].hash}`, base), (bytes) =>
      onProgress((arrived += bytes) / total),
    );
  return fetched;
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

// What calls a new worker. Calls wait for each other: a network computes one thing at a time.
function worker(base) {
  const own = new Worker(new URL("worker.js", base), { type: "module" }),
    waiting = new Map();
  let last = Promise.resolve(),
    count = 0;
  own.onmessage = ({ data: { id, result, error } }) => {
    const [resolve, reject] = waiting.get(id);
    waiting.delete(id);
    if (error) reject(new Error(error));
    else resolve(result);
  };
  // A worker that does not start says so here, and answers nothing.
  own.onerror = (event) => {
    for (const [, reject] of waiting.values())
      reject(new Error(event.message || "the worker did not start"));
  };
  const send = (call, values) =>
    new Promise((resolve, reject) => {
      waiting.set(++count, [resolve, reject]);
      own.postMessage({ id: count, call, values });
    });
  return (call, values) => {
    const answer = last.then(() => send(call, values));
    last = answer.catch(() => {});
    return answer;
  };
}

class Model {
  constructor(call, { shape, models }, name) {
    Object.assign(this, models[name], { call, shape, name });
    this.size = shape.reduce((product, n) => product * n);
  }

  run(file, inputs) {
    return this.call("run", { name: file, inputs });
  }

  // What the network is told of an empty prompt and of `text`: two rows. The last one is kept.
  async told(text) {
    if (this.text !== text) {
      const ids = ["", text].flatMap((part) => tokens(part, this.tokens));
      const rows = [BigInt64Array.from(ids, BigInt), [2, this.tokens.length]];
      this.context = await this.run(`${this.name}-text.onnx`, { ids: rows });
      this.text = text;
    }
    return this.context;
  }

  // The network's answer for latents with the prompt, and without it where the step is guided: each
  // is one row, and takes one evaluation.
  async evaluate(latents, timestep, context, guided) {
    const half = context.length / 2,
      answers = [];
    for (const told of [context.slice(half), context.slice(0, half)].slice(0, guided ? 2 : 1))
      answers.push(
        await this.run(`${this.name}.onnx`, {
          sample: [latents, [1, ...this.shape]],
          timestep: [Float32Array.of(timestep), [1]],
          context: [told, [1, half]],
        }),
      );
    return answers;
  }

  // Latents as a picture. An ImageData clips and rounds as the library does.
  async picture(latents) {
    const out = await this.run("decoder.onnx", { latents: [latents, [1, ...this.shape]] });
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
    return this.run("judge.onnx", { images: [pixels, [1, 3, image.height, image.width]] });
  }
}
