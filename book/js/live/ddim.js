// DDIM's step, as the library's scheduler takes it (Eq 3), for a network that predicts noise. A
// level is ᾱ.

export const ddim = {
  // What the network is told at a step.
  told: (timestep) => timestep,

  // The clean latents that the network's answer means.
  predict(latents, epsilon, alpha) {
    const signal = Math.sqrt(alpha),
      noise = Math.sqrt(1 - alpha);
    return latents.map((value, i) => (value - noise * epsilon[i]) / signal);
  },

  // The latents after the step.
  move({ clean, out, next }) {
    const signal = Math.sqrt(next),
      noise = Math.sqrt(1 - next);
    return clean.map((value, i) => signal * value + noise * out[i]);
  },
};
