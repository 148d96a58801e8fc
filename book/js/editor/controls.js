"use strict";
/* What the reader does in the grid editor, and what the page answers. */
(() => {
  const maths = editorMaths, view = editorView;
  const root = document.getElementById("grid-editor");
  const parts = {};
  for (const element of root.querySelectorAll("[data-part]")) parts[element.dataset.part] = element;
  const part = (name) => parts[name];
  const data = JSON.parse(document.getElementById("grid-editor-data").textContent);
  const schedule = maths.noiseSchedule(data.schedule), { size } = schedule;
  const GROUPS = {
    even: ["trailing", "leading"],
    "the paper": ["noise", "combined"],
    others: ["karras", "logsnr", "beta", "arctan"],
    measured: ["equidistributed", "dual-weighted"],
  };
  const MEASURED = "dual-weighted", RIVALS = ["trailing", MEASURED];
  const CAP = 2; // GuidancePlan.capped()'s
  const USES = { noise: ["p"], combined: ["p", "lambda"] };

  // `name` is null once the grid is no named one; `last` is the last that was. `helped`: by the search.
  const state = { name: "", last: "", steps: 6, p: 0.5, lam: 1, grid: [], helped: false };
  Object.assign(state, { scale: 1, capped: false });
  // The error at the top of the strip, the factor at the foot: no bar is rescaled under a drag.
  let top = 0, foot = 0;
  const bests = {}; // the reader's best grid, by data and number of steps
  const problems = {};

  /* All that depends on the data and the scale alone, computed when they are first chosen. */
  function problemOf(name, scale) {
    const key = `${name} ${scale}`;
    if (problems[key]) return problems[key];
    const mixture = data.mixtures[name], judged = data.drawn + data.measured;
    const model = maths.guided(mixture, data.cloud, scale);
    const drawn = data.points.slice(0, data.drawn), others = data.points.slice(judged);
    const high = schedule.sigmas[size - 1];
    const exact = drawn.map((x) => {
      const path = [x];
      const keep = (y, sigma) => path.push(shrink(y, sigma));
      maths.solve(model, maths.begin(x, high), high, 0, 0.1, keep);
      return path;
    });
    const ends = (points) => points.map((x) => maths.exactEnd(model, schedule, x));
    const drawnEnds = ends(drawn), otherEnds = ends(others);
    const plain = scale > 1 && problemOf(name, 1);
    return (problems[key] = {
      name, mixture, model, drawn, others, exact, otherEnds,
      ends: drawnEnds,
      // Guidance changes neither the picture's frame nor the unit of errors.
      box: plain ? plain.box : boxOf(mixture, exact.flat()),
      units: plain ? plain.units : [drawnEnds, otherEnds].map(maths.spread),
      evidence: maths.measure(model, schedule, data.points.slice(data.drawn, judged)),
    });
  }

  /* What the plane shows: the paths and the middle of the clusters, with a margin. */
  function boxOf(mixture, points) {
    const around = mixture.flatMap(({ mean: [a, b], std }) => [
      [a - std, b - std],
      [a + std, b + std],
    ]);
    const [xs, ys] = [0, 1].map((axis) => [...points, ...around].map((point) => point[axis]));
    const margin = 0.15;
    return {
      left: Math.min(...xs) - margin, right: Math.max(...xs) + margin,
      bottom: Math.min(...ys) - margin, top: Math.max(...ys) + margin,
    };
  }

  const shrink = (y, sigma) => y.map((value) => value / Math.sqrt(1 + sigma * sigma));
  const problem = () => problemOf(part("data").value, state.scale);
  const situation = () => [problem().name, state.steps, state.scale, state.capped].join(" ");
  /* The model that DDIM is run on: with the cap, its steps have scales of their own. */
  const sampled = (capped = state.capped) =>
    maths.guided(problem().mixture, data.cloud, state.scale, capped ? CAP : Infinity);
  const errorOf = (grid, capped) => {
    const { drawn, ends, units } = problem();
    return maths.endError(sampled(capped), schedule, grid, drawn, ends, units[0]);
  };
  const otherErrorOf = (grid) => {
    const { others, otherEnds, units } = problem();
    return maths.endError(sampled(), schedule, grid, others, otherEnds, units[1]);
  };
  function layNamed(name) {
    const { p, lam, steps } = state;
    return maths.lay(name, schedule, steps, { p, lam, evidence: problem().evidence });
  }
  const three = (value) => value.toFixed(3);

  // ---- Drawing

  let asked = false;
  function redraw() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      if (root.clientWidth) draw();
    });
  }

  function draw() {
    const { mixture, drawn, ends, exact, box, units, evidence, name } = problem();
    const { grid } = state, sigmas = maths.levels(schedule, grid), error = errorOf(grid);
    const model = sampled(), cloud = state.scale > 1 && data.cloud;
    const paths = drawn.map((x) =>
      maths.sample(model, schedule, grid, x).map((y, k) => shrink(y, sigmas[k])),
    );
    const told = `${drawn.length} paths from noise to the data (${name})`;
    const label = `${told}, exact and by DDIM in ${grid.length} steps`;
    view.plane(part("plane"), { mixture, cloud, exact, sampled: paths, box, label });
    const errors = maths.stepErrors(model, schedule, grid, drawn, ends, units[0]);
    const sentence = worst(errors);
    const density = evidence.densities[MEASURED], bars = `The error of each step. ${sentence}`;
    top = view.bars(part("bars"), { ...errors, grid, size, density, least: top, label: bars });
    const law = drawLaw(model, sigmas);
    drawTicks(law.factors);
    score(error);
    say(`This grid ends ${three(error)} from the exact samples. ${sentence}${law.sentence}`);
  }

  /* Each step's factor, once the reader has opened the part on guidance. */
  function drawLaw(model, sigmas) {
    const { grid, scale, capped } = state, shown = part("guidance").open || scale > 1;
    const setting = `: w = ${scale}${capped ? ", capped" : ""}`;
    part("setting").textContent = scale > 1 ? setting : "";
    part("law").hidden = !shown;
    if (!shown) return { sentence: "" };
    const [without, within] = [false, true].map((cap) => three(errorOf(grid, cap)));
    part("gain").textContent = `Error at the end: ${without} without the cap, ${within} with it.`;
    const factors = maths.stepFactors(model, schedule, grid, problem().drawn);
    const scales = capped && grid.map((_, k) => maths.stepScale(model, sigmas[k], sigmas[k + 1]));
    const wrong = grid.map((_, k) => k + 1).filter((k) => view.unstable(factors[k - 1]));
    const which = wrong.length ? ` (number ${wrong.join(", ")})` : "";
    const sentence = ` Unstable: ${wrong.length} of ${grid.length} steps${which}.`;
    const label = `What each step multiplies an error by.${sentence}`;
    foot = view.factors(part("factors"), { factors, scales, grid, size, least: foot, label });
    return { factors, sentence };
  }

  /* The step whose error reaches the end most, in words. */
  function worst({ carried }) {
    const k = carried.indexOf(Math.max(...carried)), next = state.grid[k];
    const to = next === undefined ? "the end" : next;
    const step = `Step ${k}, from t = ${state.grid[k - 1]} to ${to},`;
    const what = k ? step : "What the grid leaves out before its first step";
    return `${what} adds most: ${three(carried[k])}.`;
  }

  function drawTicks(factors) {
    const ticks = part("ticks"), { grid } = state, last = grid.length - 1;
    while (ticks.children.length > grid.length) ticks.lastChild.remove();
    while (ticks.children.length < grid.length) {
      const tick = ticks.appendChild(document.createElement("div"));
      tick.setAttribute("role", "slider");
      tick.tabIndex = 0;
    }
    grid.forEach((t, k) => {
      const tick = ticks.children[k];
      tick.style.left = `${view.pixel(t, ticks.clientWidth, size)}px`;
      tick.title = `t = ${t}`;
      const told = { valuemin: last - k, valuemax: size - 1 - k, valuenow: t };
      const factor = factors ? `, factor ${view.signed(factors[k], 2)}` : "";
      told.valuetext = `timestep ${t}${factor}`;
      told.label = `Step ${k + 1} of ${last + 1}`;
      for (const [key, value] of Object.entries(told)) tick.setAttribute(`aria-${key}`, value);
    });
  }

  /* The table beside the plane. What is named there is laid anew for the data and the steps. */
  function score(error) {
    const best = bests[situation()], named = RIVALS.map((name) => [name, layNamed(name)]);
    const rows = [["this grid", state.grid], ...named, ...(best ? [["your best", best]] : [])];
    part("end").textContent = three(error);
    const cells = (grid) => `<td>${three(errorOf(grid))}</td><td>${three(otherErrorOf(grid))}</td>`;
    part("scores").innerHTML = rows
      .map(([name, grid]) => `<tr><th scope="row">${name}</th>${cells(grid)}</tr>`)
      .join("");
    part("verdict").textContent = verdict(error, errorOf(named[1][1]), best && errorOf(best));
    part("back").disabled = !best;
  }

  function verdict(error, measured, best) {
    if (state.helped)
      return `Searched on the 16 paths: ${compared(error, measured)}. The others say what it is worth.`;
    if (best === undefined) return `Drag a tick. Can you beat ${MEASURED}, the measured grid?`;
    return `Your best has ${compared(best, measured)}.`;
  }

  function compared(error, measured) {
    const change = 100 * Math.abs(error / measured - 1), more = error < measured ? "less" : "more";
    return `${change < 1 ? "under 1" : Math.round(change)} % ${more} error than ${MEASURED}`;
  }

  let waiting = 0;
  function say(sentence) {
    clearTimeout(waiting); // or a drag would be read out pixel by pixel
    waiting = setTimeout(() => (part("said").textContent = sentence), 250);
  }

  // ---- What the reader does

  /* Lays a named grid, and shows the exponents that it uses. */
  function choose(name) {
    Object.assign(state, { name, last: name, grid: layNamed(name), helped: false });
    press(name);
    top = foot = 0;
    const uses = USES[name] || [];
    part("exponents").hidden = !uses.length;
    part("lambda").hidden = !uses.includes("lambda");
    redraw();
  }

  function press(name) {
    for (const button of part("names").querySelectorAll("button"))
      button.setAttribute("aria-pressed", button.textContent === name);
  }

  /* Shows a grid that no button stands for. */
  function show(grid, helped) {
    Object.assign(state, { grid, helped, name: null });
    press(null); // the exponents stay: the strip must not move under a finger
    redraw();
  }

  /* A grid of the reader's own; it is kept if it is the best so far. */
  function own(grid) {
    const best = bests[situation()];
    if (!state.helped && (!best || errorOf(grid) < errorOf(best))) bests[situation()] = grid;
    show(grid, state.helped);
  }

  /* Moves a tick of the reader's, never past its neighbours. */
  function place(k, t) {
    const { grid } = state, least = (grid[k + 1] ?? -1) + 1, most = (grid[k - 1] ?? size) - 1;
    const to = Math.round(Math.min(Math.max(t, least), most));
    own(grid.map((old, j) => (j === k ? to : old)));
  }

  function drag(event) {
    const ticks = part("ticks"), children = [...ticks.children];
    const { left, width } = ticks.getBoundingClientRect(), before = state.grid;
    const at = (e) => view.timestep(e.clientX - left, width, size), from = at(event);
    const away = before.map((t) => Math.abs(t - from)), hit = children.indexOf(event.target);
    const k = hit >= 0 ? hit : away.indexOf(Math.min(...away));
    event.preventDefault();
    children[k].focus({ preventScroll: true });
    children[k].classList.add("ge-held");
    ticks.setPointerCapture(event.pointerId);
    ticks.onpointermove = (e) => place(k, before[k] + at(e) - from);
    ticks.onpointerup = ticks.onpointercancel = () => {
      children[k].classList.remove("ge-held");
      ticks.onpointermove = ticks.onpointerup = ticks.onpointercancel = null;
    };
  }

  const KEYS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 };
  Object.assign(KEYS, { PageDown: -50, PageUp: 50, Home: -size, End: size });
  function steer(event) {
    const k = [...part("ticks").children].indexOf(event.target), by = KEYS[event.key];
    if (k < 0 || !by || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const times = event.shiftKey && Math.abs(by) === 1 ? 10 : 1;
    place(k, state.grid[k] + by * times);
  }

  /* A range input sets a number of the state, and the grid is laid anew. */
  function follow(name, input) {
    input.addEventListener("input", () => {
      state[name] = Number(input.value);
      input.nextElementSibling.textContent = input.value;
      choose(state.name || state.last);
    });
  }

  for (const name of Object.keys(data.mixtures)) part("data").add(new Option(name));
  for (const [group, names] of Object.entries(GROUPS)) {
    const list = part("names").appendChild(document.createElement("span"));
    list.className = "ge-group";
    list.append(Object.assign(document.createElement("span"), { textContent: group }));
    for (const name of names) {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", textContent: name });
      button.addEventListener("click", () => choose(name));
      list.append(button);
    }
  }
  // The reader's own grid stays where it is when the data or the guidance change.
  function renew() {
    top = foot = 0;
    if (state.name) choose(state.name);
    else redraw();
  }
  part("data").addEventListener("change", renew);
  part("scale").addEventListener("input", ({ target }) => {
    state.scale = Number(target.value);
    target.nextElementSibling.textContent = target.value;
    renew();
  });
  part("cap").addEventListener("change", ({ target }) => {
    state.capped = target.checked;
    renew();
  });
  part("guidance").addEventListener("toggle", redraw);
  for (const name of ["steps", "p", "lam"]) follow(name, part(name));
  part("back").addEventListener("click", () => show(bests[situation()], false));
  part("search").addEventListener("click", () => {
    show(maths.search(state.grid, size, errorOf), true);
  });
  part("ticks").addEventListener("pointerdown", drag);
  part("ticks").addEventListener("keydown", steer);
  new ResizeObserver(redraw).observe(root);
  choose("trailing");
})();
