// DDIM on any grid, as the library's scheduler steps (Eq 3), for a network that predicts noise.

// Latents are flat Float32Arrays. `evaluate(latents, timestep)` gives the noise predicted without
// and with the prompt. `onStep` is handed the number of steps done, the latents and the predicted
// clean latents; where it answers false, the run stops and gives null.
export async function sample({ noise, grid, levels, guidance, evaluate, onStep }) {
  let latents = Float32Array.from(noise);
  for (let k = 0; k < grid.length; k++) {
    const [without, withPrompt] = await evaluate(latents, grid[k]);
    const epsilon = guided(without, withPrompt, guidance);
    // The last step ends where the scheduler's config says, which need not be timestep 0's level.
    const next = k + 1 < grid.length ? levels.alphas[grid[k + 1]] : levels.last;
    const clean = predict(latents, epsilon, levels.alphas[grid[k]]);
    latents = move(clean, epsilon, next);
    if ((await onStep?.(k + 1, latents, clean)) === false) return null;
  }
  return latents;
}

// Classifier-free guidance. Up to 1 diffusers does not guide, and the prompt's own row counts.
export function guided(without, withPrompt, scale) {
  if (scale <= 1) return withPrompt;
  return without.map((value, i) => value + scale * (withPrompt[i] - value));
}

export function predict(latents, epsilon, alpha) {
  const signal = Math.sqrt(alpha),
    noise = Math.sqrt(1 - alpha);
  return latents.map((value, i) => (value - noise * epsilon[i]) / signal);
}

function move(clean, epsilon, alpha) {
  const signal = Math.sqrt(alpha),
    noise = Math.sqrt(1 - alpha);
  return clean.map((value, i) => signal * value + noise * epsilon[i]);
}

// The root of the mean squared difference of two latents, in units of the starting noise.
export function distance(one, other) {
  let sum = 0;
  one.forEach((value, i) => (sum += (value - other[i]) ** 2));
  return Math.sqrt(sum / one.length);
}
