"use strict";
/* How the grid editor looks: two drawings in SVG. They are drawn at the size they are shown at, so
that a letter has the same size on a phone. Colours are the style sheet's. */
const editorView = (() => {
  const STRIP = 210, AXIS = 54, TOP = 18, SIDE = 12; // of the strip, in pixels

  const tag = (name, attributes, text = "") =>
    `<${name} ${Object.entries(attributes).map(([key, value]) => `${key}="${value}"`).join(" ")}>${text}</${name}>`;
  const rounded = (value) => Math.round(value * 10) / 10;
  const line = (points) => "M" + points.map((point) => point.map(rounded).join(" ")).join("L");

  /* The plane of the data, where x runs from noise to a clean point. `shown` has the mixture, and
  for each starting point the exact path and DDIM's, both in x = √ᾱ y. */
  function plane(svg, shown) {
    const { left, right, bottom, top } = shown.box, width = svg.clientWidth;
    const scale = width / (right - left), height = Math.round((top - bottom) * scale);
    const place = ([a, b]) => [(a - left) * scale, (top - b) * scale];
    const path = (points, colour, width, more = {}) =>
      tag("path", { d: line(points), fill: "none", stroke: `var(${colour})`, "stroke-width": width, ...more });
    const dot = ([x, y], r, more) => tag("circle", { cx: rounded(x), cy: rounded(y), r, ...more });
    const parts = shown.mixture.flatMap(({ mean, std }) =>
      [2, 1].map((times) =>
        dot(place(mean), rounded(times * std * scale), { fill: "var(--ge-quiet)", opacity: 0.12 }),
      ),
    );
    for (const exact of shown.exact)
      parts.push(path(exact.map(place), "--ge-quiet", 1.2, { opacity: 0.75 }));
    for (const sampled of shown.sampled) {
      const points = sampled.map(place);
      parts.push(path(points, "--ge-path", 1.5));
      points.slice(1).forEach((point) => parts.push(dot(point, 2.2, { fill: "var(--ge-path)" })));
      parts.push(dot(points[0], 3.2, { fill: "var(--ge-ground)", stroke: "var(--ge-quiet)", "stroke-width": 1.5 }));
    }
    shown.sampled.forEach((sampled, n) => {
      const end = place(sampled[sampled.length - 1]), exact = shown.exact[n];
      parts.push(path([end, place(exact[exact.length - 1])], "--ge-error", 3, { "stroke-linecap": "round" }));
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

  /* The error of each step over the timesteps it spans, and the density that is wanted. */
  function bars(svg, shown) {
    const width = svg.clientWidth, foot = STRIP - AXIS, { grid, size } = shown;
    const at = (t) => rounded(pixel(t, width, size));
    const top = ceiling(Math.max(...shown.made, ...shown.carried, 1e-4));
    const height = (value) => rounded((value / top) * (foot - TOP));
    const parts = [wanted(shown.density, at, foot)];
    const edges = [size - 1, ...grid, -1];
    shown.made.forEach((made, k) => {
      const left = at(edges[k + 1]), wide = Math.max(at(edges[k]) - left, 0.5);
      const bar = (value, style) =>
        tag("rect", { x: left, y: rounded(foot - height(value)), width: rounded(wide), height: height(value), ...style });
      if (edges[k] > edges[k + 1]) {
        parts.push(bar(shown.carried[k], { fill: "var(--ge-error)", opacity: 0.85 }));
        parts.push(bar(made, { fill: "none", stroke: "var(--ge-error)", "stroke-width": 1.2 }));
      }
    });
    grid.forEach((t) =>
      parts.push(tag("line", { x1: at(t), x2: at(t), y1: foot, y2: foot + 20, stroke: "var(--ge-path)", "stroke-width": 1.5 })),
    );
    parts.push(tag("line", { x1: at(-1), x2: at(size - 1), y1: foot, y2: foot, stroke: "var(--ge-quiet)" }));
    parts.push(tag("line", { x1: at(-1), x2: at(size - 1), y1: TOP, y2: TOP, stroke: "var(--ge-line)", "stroke-dasharray": "3 3" }));
    parts.push(tag("text", { x: at(size - 1), y: TOP - 5, "text-anchor": "end" }, `error ${Number(top.toPrecision(1))}`));
    parts.push(axis(at, width, size));
    svg.setAttribute("viewBox", `0 0 ${width} ${STRIP}`);
    svg.style.height = `${STRIP}px`;
    svg.innerHTML = parts.join("");
    svg.setAttribute("aria-label", shown.label);
  }

  /* A pale area under the density. Its peak near clean data is cut off, or it would flatten the rest. */
  function wanted(density, at, foot) {
    const sorted = [...density].sort((a, b) => a - b), most = sorted[Math.floor(0.96 * sorted.length)];
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

  return { plane, bars, pixel, timestep };
})();
