"use strict";
/* What the grid editor computes, without a page: node runs this file in the tests.

A point is in y = x / √ᾱ, the scale of clean data, and a noise level is σ = √((1 − ᾱ)/ᾱ). There
the exact path obeys dy/dσ = ε, and DDIM (Eq 3) is Euler's method. A grid is K falling timesteps.
tests/test_editor.py holds each function to the library's own. */
const editorMaths = (() => {
  // ---- The noise schedule (Eq 4)

  /* σ_t² of Eq 4 and σ at every timestep, for diffusers' scaled_linear betas. */
  function noiseSchedule({ beta_start, beta_end, num_train_timesteps }) {
    const roots = linspace(Math.sqrt(beta_start), Math.sqrt(beta_end), num_train_timesteps);
    let bar = 1;
    const bars = roots.map((root) => (bar *= 1 - root * root));
    return {
      size: num_train_timesteps,
      variance: bars.map((b) => 1 - b),
      sigmas: bars.map((b) => Math.sqrt((1 - b) / b)),
    };
  }

  function linspace(from, to, count) {
    return Array.from({ length: count }, (_, k) =>
      k && k === count - 1 ? to : from + (k * (to - from)) / Math.max(count - 1, 1),
    );
  }

  /* Linear between the known points, constant beyond them; `places` rise. */
  function interpolate(x, places, values) {
    const last = places.length - 1;
    if (x <= places[0]) return values[0];
    if (x >= places[last]) return values[last];
    let low = 0, high = last;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (places[middle] <= x) low = middle;
      else high = middle;
    }
    const slope = (values[high] - values[low]) / (places[high] - places[low]);
    return slope * (x - places[low]) + values[low];
  }

  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const mean = (values) => sum(values) / values.length;

  // ---- The paper's weights and grids (Eqs 5–13)

  /* Eq 5: large where noise is low. */
  const noiseWeights = (variance, p, eps = 1e-8) =>
    variance.map((v) => 1 / (Math.sqrt(v) ** p + eps));

  /* Eq 6. */
  function normalize(weights) {
    const total = sum(weights);
    return weights.map((w) => w / total);
  }

  /* Eq 7, read as a density. */
  const stepsPerTimestep = (weights, steps) => normalize(weights).map((w) => steps * w);

  /* Eq 9, with g over its mean: small where the denoiser is sensitive. */
  function gradientStep(g, lam) {
    const average = mean(g);
    return g.map((value) => 1 / (1 + (lam * value) / average));
  }

  /* Eqs 10–12: the length of a step at each timestep, under one of three readings. */
  function stepSizes(weights, factors, reading = "intent") {
    const product = weights.map((w, t) => w * factors[t]); // Eq 10 as printed
    if (reading === "literal") return product;
    if (reading === "density") return product.map((w) => 1 / w);
    return factors.map((factor, t) => factor / weights[t]);
  }

  /* Eqs 11–13: K timesteps whose steps are in proportion to h(t) and sum to T. */
  function allocate(h, steps) {
    const cumulative = [0], places = [0];
    h.forEach((length, t) => {
      cumulative.push(cumulative[t] + 1 / length);
      places.push(t + 1);
    });
    const ideal = [];
    for (let k = 0; k < steps; k++)
      ideal.push(interpolate(cumulative[h.length] * (1 - k / steps), cumulative, places) - 1);
    return distinct(ideal);
  }

  /* Halves go to the even neighbour, as Python rounds. */
  function round(x) {
    const below = Math.floor(x), rest = x - below;
    return rest > 0.5 || (rest === 0.5 && below % 2 !== 0) ? below + 1 : below;
  }

  /* Whole timesteps: strictly falling, none negative. */
  function distinct(ideal) {
    const grid = [];
    ideal.forEach((t, k) => {
      const highest = k ? grid[k - 1] - 1 : round(t);
      grid.push(Math.max(Math.min(round(t), highest), ideal.length - 1 - k));
    });
    return grid;
  }

  // ---- The others' grids

  function leading(size, steps, offset = 1) {
    const length = Math.floor(size / steps);
    return Array.from({ length: steps }, (_, k) => (steps - 1 - k) * length + offset);
  }

  function trailing(size, steps) {
    const length = size - size / steps - size; // NumPy's arange steps by this difference
    return Array.from({ length: steps }, (_, k) => round(size + k * length) - 1);
  }

  /* The timesteps of falling noise levels, log-linear between the schedule's own. */
  function nearest(sigmas, wanted) {
    const logs = sigmas.map(Math.log), places = sigmas.map((_, t) => t);
    return distinct(wanted.map((sigma) => interpolate(Math.log(sigma), logs, places)));
  }

  const karras = (high, low, steps, rho = 7) =>
    linspace(high ** (1 / rho), low ** (1 / rho), steps).map((root) => root ** rho);
  const logsnr = (high, low, steps) =>
    linspace(Math.log(high), Math.log(low), steps).map(Math.exp);
  const arctan = (high, low, steps) =>
    linspace(Math.atan(high), Math.atan(low), steps).map(Math.tan);

  /* Quantiles of Beta(0.6, 0.6) over timesteps. */
  const beta = (size, steps) =>
    distinct(Array.from({ length: steps }, (_, k) => size * betaQuantile(1 - k / steps) - 1));

  const SHAPE = 0.6, COMPLETE = 1.4891922488128171 ** 2 / 0.9181687423997607; // Γ(0.6)² / Γ(1.2)

  /* By halving: the distribution is symmetric, and its series converges fast below 1/2. */
  function betaQuantile(share) {
    if (share > 0.5) return 1 - betaQuantile(1 - share);
    let low = 0, high = 0.5;
    for (let k = 0; k < 60; k++) {
      const middle = (low + high) / 2;
      if (betaShare(middle) < share) low = middle;
      else high = middle;
    }
    return (low + high) / 2;
  }

  function betaShare(x) {
    let term = 1, total = 0;
    for (let n = 0; n < 60; n++) {
      total += term / (SHAPE + n);
      term *= ((n + 1 - SHAPE) / (n + 1)) * x;
    }
    return (x ** SHAPE * total) / COMPLETE;
  }

  /* K timesteps by a method's name. `evidence` is what `measure` returns. */
  function lay(name, schedule, steps, { p = 0.5, lam = 1, evidence } = {}) {
    const { size, sigmas, variance } = schedule, even = sigmas.map(() => 1);
    const levels = { karras, logsnr, arctan }[name];
    if (levels) return nearest(sigmas, levels(sigmas[size - 1], sigmas[0], steps));
    if (name === "leading") return leading(size, steps);
    if (name === "trailing") return trailing(size, steps);
    if (name === "beta") return beta(size, steps);
    if (name === "noise") return allocate(stepSizes(noiseWeights(variance, p), even), steps);
    if (name === "combined") {
      const factors = gradientStep(evidence.g, lam);
      return allocate(stepSizes(noiseWeights(variance, p), factors), steps);
    }
    return allocate(evidence.densities[name].map((density) => 1 / density), steps);
  }

  // ---- The mixture Σ w_i N(μ_i, c_i² I) in the plane, and its exact denoiser

  const share = new Float64Array(64); // of each component: one array, for speed

  /* Fills in each component's share of the density at y, where the noise level is σ. */
  function weigh(mixture, y, sigma) {
    const count = mixture.length;
    let highest = -Infinity, total = 0;
    for (let i = 0; i < count; i++) {
      const { mean, std, weight } = mixture[i], v = std * std + sigma * sigma;
      const dx = mean[0] - y[0], dy = mean[1] - y[1];
      share[i] = Math.log(weight / v) - (dx * dx + dy * dy) / (2 * v);
      if (share[i] > highest) highest = share[i];
    }
    for (let i = 0; i < count; i++) total += share[i] = Math.exp(share[i] - highest);
    for (let i = 0; i < count; i++) share[i] /= total;
  }

  /* E[ε | y]: −σ times the score. A component's own score is (μ_i − y) / (c_i² + σ²). */
  function mixtureNoise(mixture, y, sigma) {
    weigh(mixture, y, sigma);
    let sx = 0, sy = 0;
    for (let i = 0; i < mixture.length; i++) {
      const { mean, std } = mixture[i], pull = share[i] / (std * std + sigma * sigma);
      sx += pull * (mean[0] - y[0]);
      sy += pull * (mean[1] - y[1]);
    }
    return [-sigma * sx, -sigma * sy];
  }

  /* ∂ε/∂y as [xx, xy, yy]; the matrix is symmetric. */
  function mixtureJacobian(mixture, y, sigma) {
    weigh(mixture, y, sigma);
    let sx = 0, sy = 0, xx = 0, xy = 0, yy = 0, inverse = 0;
    mixture.forEach(({ mean: [a, b], std }, i) => {
      const v = std * std + sigma * sigma, dx = (a - y[0]) / v, dy = (b - y[1]) / v;
      sx += share[i] * dx;
      sy += share[i] * dy;
      xx += share[i] * dx * dx;
      xy += share[i] * dx * dy;
      yy += share[i] * dy * dy;
      inverse += share[i] / v;
    });
    return [xx - sx * sx - inverse, xy - sx * sy, yy - sy * sy - inverse].map((h) => -sigma * h);
  }

  // ---- Guidance: ε_w = ε_u + w (ε_c − ε_u)

  /* A model is a mixture, or two of them: what the prompt asks for, and all data, of which that is
  a tenth and a wide cloud the rest. At scale 1 only the first counts. */
  function guided(prompted, cloud, scale, cap = Infinity) {
    const tenth = prompted.map((part) => ({ ...part, weight: 0.1 * part.weight }));
    const all = [...tenth, { ...cloud, weight: 0.9 }];
    return scale === 1 ? prompted : { prompted, all, scale, cap };
  }

  function combine(values, model, y, sigma, scale) {
    if (Array.isArray(model)) return values(model, y, sigma);
    const without = values(model.all, y, sigma), within = values(model.prompted, y, sigma);
    return without.map((value, i) => value + scale * (within[i] - value));
  }
  /* ε and ∂ε/∂y of a model, at its own scale or at another. */
  const noise = (model, y, sigma, scale = model.scale) =>
    combine(mixtureNoise, model, y, sigma, scale);
  const jacobian = (model, y, sigma, scale = model.scale) =>
    combine(mixtureJacobian, model, y, sigma, scale);

  /* A step's scale: at most c / (1 − σ′/σ), and no less than 1. */
  const stepScale = ({ scale = 1, cap }, from, to) =>
    scale === 1 ? 1 : Math.max(1, Math.min(scale, cap / (1 - to / from)));

  /* By what each step multiplies an error, 1 − κ (1 − σ′/σ). κ is the largest eigenvalue of
  σ ∂ε/∂y at any point from which the step starts on DDIM's paths. */
  function stepFactors(model, schedule, grid, points) {
    const sigmas = levels(schedule, grid);
    const paths = points.map((x) => sample(model, schedule, grid, x));
    return grid.map((_, k) => {
      const [from, to] = [sigmas[k], sigmas[k + 1]], scale = stepScale(model, from, to);
      const kappas = paths.map((path) => {
        const [xx, xy, yy] = jacobian(model, path[k], from, scale);
        return from * ((xx + yy) / 2 + Math.hypot((xx - yy) / 2, xy));
      });
      return 1 - Math.max(...kappas) * (1 - to / from);
    });
  }

  // ---- Paths

  const KNEE = 0.1; // the size of the smallest cluster: below it the path is nearly straight in σ
  const NOISE_FREE = 0;

  /* The exact path from y at σ = `from` down to `to`: Runge–Kutta in u = asinh(σ / KNEE). Steps are
  at most `length` long in u. With `visit`, each point on the way is handed to it. */
  function solve(model, y, from, to, length = 0.1, visit = null) {
    const start = Math.asinh(from / KNEE), stop = Math.asinh(to / KNEE);
    const count = Math.max(Math.ceil(Math.abs(stop - start) / length), 1);
    const h = (stop - start) / count;
    const slope = (u, a, b) => {
      const [x, z] = noise(model, [a, b], KNEE * Math.sinh(u)), scale = KNEE * Math.cosh(u);
      return [scale * x, scale * z];
    };
    let [a, b] = y;
    for (let k = 0; k < count; k++) {
      const u = start + k * h;
      const s1 = slope(u, a, b), s2 = slope(u + h / 2, a + (h / 2) * s1[0], b + (h / 2) * s1[1]);
      const s3 = slope(u + h / 2, a + (h / 2) * s2[0], b + (h / 2) * s2[1]);
      const s4 = slope(u + h, a + h * s3[0], b + h * s3[1]);
      a += (h / 6) * (s1[0] + 2 * s2[0] + 2 * s3[0] + s4[0]);
      b += (h / 6) * (s1[1] + 2 * s2[1] + 2 * s3[1] + s4[1]);
      if (visit) visit([a, b], KNEE * Math.sinh(u + h));
    }
    return [a, b];
  }

  /* Pure noise x taken for a sample at σ. */
  const begin = (x, sigma) => x.map((value) => value * Math.sqrt(1 + sigma * sigma));

  /* One step of DDIM (Eq 3). */
  function ddimStep(model, y, from, to) {
    const [a, b] = noise(model, y, from, stepScale(model, from, to));
    return [y[0] + (to - from) * a, y[1] + (to - from) * b];
  }

  /* The σ of a grid's steps, and clean data's, where the last step ends. */
  const levels = (schedule, grid) => [...grid.map((t) => schedule.sigmas[t]), NOISE_FREE];

  /* The points of DDIM's path over a grid, from pure noise x. */
  function sample(model, schedule, grid, x) {
    const sigmas = levels(schedule, grid), path = [begin(x, sigmas[0])];
    for (let k = 0; k < grid.length; k++)
      path.push(ddimStep(model, path[k], sigmas[k], sigmas[k + 1]));
    return path;
  }

  /* Where the exact path from the noisiest timestep ends. */
  function exactEnd(model, schedule, x) {
    const high = schedule.sigmas[schedule.size - 1];
    return solve(model, begin(x, high), high, NOISE_FREE, 0.03);
  }

  const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);

  /* The root of the mean squared distance from the mean: the unit of all errors here. */
  function spread(points) {
    const centre = [mean(points.map((p) => p[0])), mean(points.map((p) => p[1]))];
    return Math.sqrt(mean(points.map((p) => distance(p, centre) ** 2)));
  }

  /* The mean distance of DDIM's ends from the exact ones, over those ends' spread. Guidance draws
  the ends together: then `unit` is the spread without it. */
  function endError(model, schedule, grid, points, ends, unit = spread(ends)) {
    const sigmas = levels(schedule, grid);
    let total = 0;
    points.forEach((x, n) => {
      let y = begin(x, sigmas[0]);
      for (let k = 0; k < grid.length; k++) y = ddimStep(model, y, sigmas[k], sigmas[k + 1]);
      total += distance(y, ends[n]);
    });
    return total / points.length / unit;
  }

  /* What each step adds. `made` is the mean distance between a step and the exact path from the
  same point. `carried` is what that difference has become when both are followed exactly to the
  end: as vectors, these add up to the error at the end. Number 0 is the stretch that a grid leaves
  out when it begins below the noisiest timestep; number k is step k. Both over the ends' spread. */
  function stepErrors(model, schedule, grid, points, ends, unit = spread(ends)) {
    const sigmas = levels(schedule, grid), high = schedule.sigmas[schedule.size - 1];
    const made = sigmas.map(() => 0), carried = sigmas.map(() => 0);
    const total = points.length * unit;
    points.forEach((x, n) => {
      let y = begin(x, sigmas[0]), before = ends[n];
      const add = (k, exact, reached, sigma) => {
        const end = solve(model, reached, sigma, NOISE_FREE);
        made[k] += distance(exact, reached) / total;
        carried[k] += distance(end, before) / total;
        before = end;
      };
      if (sigmas[0] < high) add(0, solve(model, begin(x, high), high, sigmas[0]), y, sigmas[0]);
      for (let k = 0; k < grid.length; k++) {
        const next = ddimStep(model, y, sigmas[k], sigmas[k + 1]);
        add(k + 1, solve(model, y, sigmas[k], sigmas[k + 1]), next, sigmas[k + 1]);
        y = next;
      }
    });
    return { made, carried };
  }

  // ---- What is measured along the finest path, one step for every timestep

  /* The sensitivity g(t) (Eq 8: the Frobenius norm of ∂ε/∂x), and the best densities of steps: by
  the error where a step makes it, and by what of it reaches the end. */
  function measure(model, schedule, points) {
    const { size, sigmas } = schedule, g = sigmas.map(() => 0);
    const made = new Array(size).fill(0), carried = new Array(size).fill(0);
    for (const x of points) {
      const along = follow(model, sigmas, x);
      along.forEach(({ norm }, t) => (g[t] += norm / points.length));
      let [a, b, c, d] = [1, 0, 0, 1]; // what becomes of an error at the end: a 2 × 2 matrix
      for (let t = 0; t < size - 1; t++) {
        const width = sigmas[t] - (t ? sigmas[t - 1] : NOISE_FREE), [xx, xy, yy] = along[t].matrix;
        const [m, n, o] = [1 - width * xx, -width * xy, 1 - width * yy];
        [a, b, c, d] = [a * m + b * n, a * n + b * o, c * m + d * n, c * n + d * o];
        const change = sigmas[t + 1] - sigmas[t], low = along[t].noise, high = along[t + 1].noise;
        const ex = change * (high[0] - low[0]), ey = change * (high[1] - low[1]);
        made[t + 1] += ex * ex + ey * ey;
        carried[t + 1] += (a * ex + b * ey) ** 2 + (c * ex + d * ey) ** 2;
      }
    }
    const density = (squares) => {
      const roots = squares.map((value) => Math.sqrt(Math.sqrt(value / points.length)));
      return [roots[1], ...roots.slice(1)];
    };
    const densities = { equidistributed: density(made), "dual-weighted": density(carried) };
    return { g, densities };
  }

  /* ε, ∂ε/∂y and ‖∂ε/∂x‖ at each timestep of DDIM's path through all of them. */
  function follow(model, sigmas, x) {
    const along = new Array(sigmas.length);
    let y = begin(x, sigmas[sigmas.length - 1]);
    for (let t = sigmas.length - 1; t >= 0; t--) {
      const sigma = sigmas[t], matrix = jacobian(model, y, sigma), [xx, xy, yy] = matrix;
      const norm = Math.sqrt((xx * xx + 2 * xy * xy + yy * yy) * (1 + sigma * sigma));
      along[t] = { noise: noise(model, y, sigma), matrix, norm };
      const change = (t ? sigmas[t - 1] : NOISE_FREE) - sigma;
      y = [y[0] + change * along[t].noise[0], y[1] + change * along[t].noise[1]];
    }
    return along;
  }

  // ---- The reader's moves

  /* The grid with tick k at timestep t. The others give way, stay distinct and within 0 … T − 1. */
  function move(grid, k, t, size) {
    const last = grid.length - 1, to = Math.min(Math.max(round(t), last - k), size - 1 - k);
    return grid.map((old, j) => {
      if (j === k) return to;
      return j < k ? Math.max(old, to + k - j) : Math.min(old, to - (j - k));
    });
  }

  /* The best grid near `grid` by single moves, each halved until none helps. */
  function search(grid, size, error) {
    let best = grid, least = error(grid);
    for (let stride = 64; stride >= 1; stride /= 2)
      for (let again = true; again; ) {
        again = false;
        for (let k = 0; k < grid.length; k++)
          for (const way of [-stride, stride]) {
            const tried = move(best, k, best[k] + way, size), found = error(tried);
            if (found < least - 1e-9) [best, least, again] = [tried, found, true];
          }
      }
    return best;
  }

  return {
    noiseSchedule, noiseWeights, normalize, stepsPerTimestep, gradientStep, stepSizes, allocate,
    lay, noise, jacobian, solve, begin, sample, exactEnd, endError, stepErrors, measure, move,
    search, spread, levels, betaQuantile, guided, stepScale, stepFactors,
  };
})();
if (typeof module !== "undefined") module.exports = editorMaths;
