// Runs the networks away from the page, which would stand still meanwhile.

import * as ort from "./ort/ort.js";

const sessions = {};

const calls = {
  // The first call brings the runtime's own code.
  async open({ wasm, networks }) {
    ort.env.wasm.numThreads = 1; // more would need headers that a plain page host does not send
    if (wasm) ort.env.wasm.wasmBinary = wasm;
    for (const [name, bytes] of Object.entries(networks))
      sessions[name] = await ort.InferenceSession.create(new Uint8Array(bytes), {
        executionProviders: ["wasm"],
      });
  },
  async run({ name, inputs }) {
    const feeds = {};
    for (const [key, [values, dims]] of Object.entries(inputs)) {
      const type = values instanceof BigInt64Array ? "int64" : "float32";
      feeds[key] = new ort.Tensor(type, values, dims);
    }
    return (await sessions[name].run(feeds)).out.data;
  },
};

onmessage = async ({ data: { id, call, values } }) => {
  try {
    postMessage({ id, result: await calls[call](values) });
  } catch (error) {
    postMessage({ id, error: error?.message ?? String(error) });
  }
};
