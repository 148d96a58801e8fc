"use strict";
/* How the grid editor looks: two drawings in SVG. They are drawn at the size they are shown at, so
that a letter has the same size on a phone. Colours are the style sheet's. */
const editorView = (() => {
  const STRIP = 210, AXIS = 54, TOP = 18, SIDE = 12; // of the strip, in pixels

  function tag(name, attributes, text = "") {
    const written = Object.entries(attributes).map(([key, value]) => `${key}="${value}"`);
    return `<${name} ${written.join(" ")}>${text}</${name}>`;
  }
  const rounded = (value) => Math.round(value * 10) / 10;
  const line = (points) => "M" + points.map((point) => point.map(rounded).join(" ")).join("L");

  /* The plane of the data, where x runs from noise to a clean point. `shown` has the mixture, and
  for each starting point the exact path and DDIM's, both in x = √ᾱ y. */
  function plane(svg, shown) {
    const { left, right, bottom, top } = shown.box, width = svg.clientWidth;
    const scale = width / (right - left), height = Math.round((top - bottom) * scale);
    const place = ([a, b]) => [(a - left) * scale, (top - b) * scale];
    const path = (points, colour, width, more = {}) => {
      const style = { fill: "none", stroke: `var(${colour})`, "stroke-width": width };
      return tag("path", { d: line(points.map(place)), ...style, ...more });
    };
    const dot = (point, r, more) => {
      const [cx, cy] = place(point).map(rounded);
      return tag("circle", { cx, cy, r, ...more });
    };
    const start = { fill: "var(--ge-ground)", stroke: "var(--ge-quiet)", "stroke-width": 1.5 };
    const parts = shown.mixture.flatMap(({ mean, std }) =>
      [2, 1].map((times) =>
        dot(mean, rounded(times * std * scale), { fill: "var(--ge-quiet)", opacity: 0.12 }),
      ),
    );
    if (shown.cloud) {
      const dashed = { fill: "none", stroke: "var(--ge-quiet)", "stroke-dasharray": "5 4" };
      parts.push(dot(shown.cloud.mean, rounded(shown.cloud.std * scale), dashed));
    }
    for (const exact of shown.exact) parts.push(path(exact, "--ge-quiet", 1.2, { opacity: 0.75 }));
    for (const [first, ...rest] of shown.sampled) {
      parts.push(path([first, ...rest], "--ge-path", 1.5));
      for (const point of rest) parts.push(dot(point, 2.2, { fill: "var(--ge-path)" }));
      parts.push(dot(first, 3.2, start));
    }
    shown.sampled.forEach((sampled, n) => {
      const miss = [sampled, shown.exact[n]].map((points) => points[points.length - 1]);
      parts.push(path(miss, "--ge-error", 3, { "stroke-linecap": "round" }));
    });
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.style.height = `${height}px`;
    svg.innerHTML = parts.join("");
    svg.setAttribute("aria-label", shown.label);
  }

  /* The pixel of a timestep on the strip, and back. Timestep −1 is clean data, the last step's end. */
  const across = (width, size) => (width - 2 * SIDE) / size;
  const pixel = (t, width, size) => SIDE + (t + 1) * across(width, size);
  const timestep = (x, width, size) => (x - SIDE) / across(width, size) - 1;

  /* The next of 1, 2, 5, 10, … (times a power of ten) above a value. */
  function ceiling(value) {
    const power = 10 ** Math.floor(Math.log10(value));
    return [1, 2, 5, 10].find((factor) => factor * power >= value) * power;
  }

  /* The error of each step over the timesteps it spans, and the density that is wanted. Gives back
  the error at the top, which is `shown.least` or more. */
  function bars(svg, shown) {
    const width = svg.clientWidth, foot = STRIP - AXIS, { grid, size } = shown;
    const at = (t) => rounded(pixel(t, width, size));
    const most = Math.max(...shown.made, ...shown.carried, 1e-4);
    const top = Math.max(ceiling(most), shown.least);
    const tall = (value) => rounded((value / top) * (foot - TOP));
    const rule = (x1, x2, y, style) => tag("line", { x1, x2, y1: y, y2: y, ...style });
    const parts = [wanted(shown.density, at, foot)];
    const edges = [size - 1, ...grid, -1];
    shown.made.forEach((made, k) => {
      const x = at(edges[k + 1]), width = rounded(Math.max(at(edges[k]) - x, 0.5));
      const bar = (value, style) =>
        tag("rect", { x, y: rounded(foot - tall(value)), width, height: tall(value), ...style });
      if (edges[k] > edges[k + 1]) {
        parts.push(bar(shown.carried[k], { fill: "var(--ge-error)", opacity: 0.85 }));
        parts.push(bar(made, { fill: "none", stroke: "var(--ge-error)", "stroke-width": 1.2 }));
      }
    });
    const tick = { y1: foot, y2: foot + 20, stroke: "var(--ge-path)", "stroke-width": 1.5 };
    for (const t of grid) parts.push(tag("line", { x1: at(t), x2: at(t), ...tick }));
    const dashed = { stroke: "var(--ge-line)", "stroke-dasharray": "3 3" };
    const corner = { x: at(size - 1), y: TOP - 5, "text-anchor": "end" };
    parts.push(
      rule(at(-1), at(size - 1), foot, { stroke: "var(--ge-quiet)" }),
      rule(at(-1), at(size - 1), TOP, dashed),
      tag("text", corner, `error ${Number(top.toPrecision(1))}`),
      axis(at, width, size),
    );
    svg.setAttribute("viewBox", `0 0 ${width} ${STRIP}`);
    svg.style.height = `${STRIP}px`;
    svg.innerHTML = parts.join("");
    svg.setAttribute("aria-label", shown.label);
    return top;
  }

  /* Each step's factor as a bar over the timesteps it spans, and as a number above it where there
  is room. Grey is where a step is stable; a step below it is striped. `shown.scales` are written
  below the steps if a cap has chosen them. Gives back the foot, `shown.least` or lower. */
  function factors(svg, shown) {
    const width = svg.clientWidth, foot = 104, { grid, size, scales } = shown;
    const height = foot + (scales ? 18 : 4), most = Math.max(2, ...shown.factors.map((f) => -f));
    const high = 1.5, low = Math.min(-ceiling(most), shown.least);
    const at = (t) => rounded(pixel(t, width, size));
    const y = (value) => {
      const inside = Math.min(Math.max(value, low), high);
      return rounded(TOP + ((high - inside) / (high - low)) * (foot - TOP));
    };
    const right = at(size - 1), wide = right - at(-1), band = { x: at(-1), width: wide };
    Object.assign(band, { y: y(1), height: rounded(y(-1) - y(1)) });
    const parts = [tag("rect", { ...band, fill: "var(--ge-quiet)", opacity: 0.16 })];
    shown.factors.forEach((factor, k) => {
      const x = at(k + 1 < grid.length ? grid[k + 1] : -1), span = rounded(at(grid[k]) - x);
      const [top, bottom] = [y(factor), y(0)].sort((a, b) => a - b), wrong = unstable(factor);
      const bar = { x, y: top, width: Math.max(span - 1, 1), height: rounded(bottom - top) };
      const filled = { fill: "var(--ge-path)", opacity: 0.85 };
      const framed = { fill: "none", stroke: "var(--ge-error)", "stroke-width": 1.5 };
      parts.push(tag("rect", { ...bar, ...(wrong ? framed : filled) }));
      let stripes = "";
      for (let at = top + 3; wrong && at < bottom; at += 4) stripes += `M${x} ${at}h${bar.width}`;
      if (stripes) parts.push(tag("path", { ...framed, d: stripes }));
      const written = { x: rounded(x + span / 2), "text-anchor": "middle" };
      const digits = span < 44 ? 1 : 2, label = { ...written, y: TOP - 6 };
      if (wrong) label.class = "ge-unstable";
      if (span >= 34) parts.push(tag("text", label, signed(factor, digits)));
      const name = span < 40 ? "" : span < 60 ? "w " : "w = ";
      const scale = scales && `${name}${scales[k].toFixed(1)}`;
      if (scales && span >= 24) parts.push(tag("text", { ...written, y: height - 4 }, scale));
    });
    const zero = { x1: at(-1), x2: right, y1: y(0), y2: y(0), stroke: "var(--ge-quiet)" };
    parts.push(tag("line", zero));
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.style.height = `${height}px`;
    svg.innerHTML = parts.join("");
    svg.setAttribute("aria-label", shown.label);
    return low;
  }

  /* A step that enlarges an error although the exact path shrinks it. (Above 1 both enlarge it.) */
  const unstable = (factor) => factor < -1;
  const signed = (value, digits) =>
    (Number(value.toFixed(digits)) + 0).toFixed(digits).replace("-", "−"); // no −0

  /* A pale area under the density. Its peak near clean data is cut off: it would flatten the rest. */
  function wanted(density, at, foot) {
    const sorted = [...density].sort((a, b) => a - b);
    const most = sorted[Math.floor(0.96 * sorted.length)];
    const points = [[at(-1), foot]];
    for (let t = 0; t < density.length; t += 4)
      points.push([at(t), foot - Math.min(density[t] / most, 1) * (foot - TOP)]);
    points.push([at(density.length - 1), foot]);
    return tag("path", { d: line(points) + "Z", fill: "var(--ge-quiet)", opacity: 0.16 });
  }

  /* Both ends in words, and the direction of sampling. */
  function axis(at, width, size) {
    const y = STRIP - 5, middle = width / 2;
    const arrow = `M${middle + 62} ${y - 4}H${middle - 62}m5 -4l-5 4l5 4`;
    return [
      tag("text", { x: at(-1), y }, "t = 0, clean"),
      tag("text", { x: at(size - 1), y, "text-anchor": "end" }, `noise, t = ${size - 1}`),
      tag("path", { d: arrow, fill: "none", stroke: "var(--ge-quiet)" }),
      tag("rect", { x: middle - 30, y: y - 12, width: 60, height: 16, fill: "var(--ge-ground)" }),
      tag("text", { x: middle, y, "text-anchor": "middle" }, "sampling"),
    ].join("");
  }

  return { plane, bars, factors, unstable, signed, pixel, timestep };
})();
