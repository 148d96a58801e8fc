// A run over any grid, by the model's own rule of a step.

import { ddim } from "./ddim.js";
import { flow } from "./flow.js";

const RULES = { ddim, flow };

// Latents are flat Float32Arrays. `scales` has each step's guidance scale. `evaluate(latents, told,
// guided)` gives what the network answers with the prompt, and without it for a guided step alone.
// `onStep` is handed the number of steps done, the latents and the predicted clean latents; where it
// answers false, the run stops and gives null.
export async function sample({ noise, grid, levels, scales, evaluate, onStep }) {
  const { told, predict, move } = RULES[levels.kind];
  let latents = Float32Array.from(noise);
  for (let k = 0; k < grid.length; k++) {
    const level = levels.values[grid[k]];
    // The last step ends where the scheduler's config says, which need not be number 0's level.
    const next = k + 1 < grid.length ? levels.values[grid[k + 1]] : levels.last;
    const [within, without] = await evaluate(latents, told(grid[k], level), scales[k] > 1);
    const out = without ? guided(without, within, scales[k]) : within;
    const clean = predict(latents, out, level);
    latents = move({ latents, clean, out, level, next });
    if ((await onStep?.(k + 1, latents, clean)) === false) return null;
  }
  return latents;
}

// Classifier-free guidance.
const guided = (without, within, scale) =>
  without.map((value, i) => value + scale * (within[i] - value));

// The root of the mean squared difference of two latents, in units of the starting noise.
export function distance(one, other) {
  let sum = 0;
  one.forEach((value, i) => (sum += (value - other[i]) ** 2));
  return Math.sqrt(sum / one.length);
}
