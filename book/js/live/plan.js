// Which steps are guided, at what scale, and what that costs: GuidancePlan's rules for DDIM and
// Euler's method. A step's σ is noise over signal, and its ratio is σ′/σ.

const SIGMA = {
  ddim: (alpha) => Math.sqrt((1 - alpha) / alpha),
  flow: (share) => share / (1 - share), // infinite at pure noise
};

export function stepsOf({ kind, values, last }, grid) {
  const sigmas = [...grid.map((t) => values[t]), last].map(SIGMA[kind]);
  return grid.map((_, k) => ({ sigma: sigmas[k], ratio: sigmas[k + 1] / sigmas[k] }));
}

// Each step's scale, at least 1. A plan may choose the steps that are guided, have `bands` of σ with
// a scale of their own, and cap each step at `cap` / (1 − σ′/σ).
export function scalesOf(levels, grid, { scale, guided, bands = [[0, null]], cap = Infinity }) {
  return stepsOf(levels, grid).map(({ sigma, ratio }, k) => {
    const own = bands.find(([edge]) => sigma > edge)[1] ?? scale,
      wished = guided && !guided[k] ? 1 : own;
    return Math.max(1, Math.min(wished, cap / (1 - ratio)));
  });
}

// What a step multiplies an error by where the prompt decides.
export const factor = (scale, ratio) => 1 - scale * (1 - ratio);
export const stable = (factor) => factor >= -1 - 1e-9; // a capped step is stable to the last digit

// A guided step takes two evaluations of the network.
export const cost = (scales) => scales.reduce((sum, scale) => sum + (scale > 1 ? 2 : 1), 0);

// The even grid with the most steps that a plan can take within the budget.
export function within(budget, levels, even, plan) {
  let steps = budget >> 1;
  while (even[steps + 1] && cost(scalesOf(levels, even[steps + 1], plan)) <= budget) steps++;
  return even[steps];
}

export const written = (scales) => scales.map((scale) => (scale > 1 ? "G" : "·")).join("");
