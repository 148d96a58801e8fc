// Euler's step of flow matching, as diffusers' scheduler takes it, for a network that predicts the
// noise less the clean latents. A level is σ, the share of noise.

const TOLD = 1000; // the network's own unit of σ

export const flow = {
  told: (number, sigma) => TOLD * sigma,

  predict: (latents, out, sigma) => latents.map((value, i) => value - sigma * out[i]),

  move: ({ latents, out, level, next }) =>
    latents.map((value, i) => value + (next - level) * out[i]),
};
