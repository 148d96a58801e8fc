// The controls beside the pictures. Each writes into `choice` and calls `changed`. They are made
// anew for another model.

import { gridLine } from "./grid.js";
import { cost, factor, scalesOf, stable, stepsOf } from "./plan.js";
import { plural } from "./prompt.js";

const NAMES = {
  measured: "Measured",
  even: "Even",
  paper: "The paper’s Eq 5",
  logsnr: "Even in log SNR",
  beta: "Beta",
};

export function controls(root, manifest, choice, changed, race) {
  const fields = [".prompt", ".settings", ".grid"].map((name) => root.querySelector(name));
  for (const field of fields) field.replaceChildren(field.querySelector("legend"));
  promptFields(fields[0], manifest.choices, choice, changed);
  const grid = gridField(fields[2], manifest, choice, changed, race);
  const counts = Object.keys(manifest.grids.even).map(Number);
  const limits = { min: counts[0], max: counts.at(-1), step: 1 };
  range(grid.amounts, "Steps", limits, choice.steps, (value) => {
    choice.steps = value;
    grid.layAgain();
  });
  range(grid.amounts, "Guidance", { min: 1, max: 10, step: 0.5 }, choice.guidance, (value) => {
    choice.guidance = value;
    grid.mark();
    changed();
  });
  range(grid.amounts, "Budget", { min: 6, max: 30, step: 1 }, choice.budget, (value) => {
    choice.budget = value;
    grid.mark();
  });
  const seeds = manifest.seeds.map((seed) => [seed, `number ${seed}`]);
  select(fields[1], "Starting noise", seeds, choice.seed, (value) => {
    choice.seed = Number(value);
    changed();
  });
}

function promptFields(field, choices, choice, changed) {
  const put = (label, name, options) =>
    select(field, label, options, choice[name], (value) => {
      choice[name] = name === "count" ? Number(value) : value;
      adapt();
      changed();
    });
  const same = (values) => values.map((value) => [value, value]);
  const relations = choices.relation.map((r) => [r, r === "none" ? "nothing else" : r]);
  const count = put("How many", "count", choices.count.map((word, k) => [k + 1, word]));
  put("Colour", "colour", same(choices.colour));
  const garment = put("Garment", "garment", same(choices.garment));
  put("Relation", "relation", relations);
  const second = [
    put("Second colour", "colourB", same(choices.colour)),
    put("Second garment", "garmentB", same(choices.garment)),
  ];
  put("Ground", "ground", same(choices.ground));

  // A caption with a relation names one thing on each side: the model has seen no other.
  function adapt() {
    const related = choice.relation !== "none",
      many = !related && choice.count > 1;
    count.hidden = related;
    for (const control of second) control.hidden = !related;
    for (const option of garment.querySelector("select").options)
      option.text = many ? plural(option.value) : option.value;
  }
  adapt();
}

function gridField(field, manifest, choice, changed, race) {
  const line = make("div", "line"),
    ends = make("p", "ends"),
    steps = make("p", "steps"),
    amounts = make("p", "amounts"),
    left = make("output"),
    start = button("Race the cap and the recipe", race),
    names = make("p", "named"),
    { grids, levels } = manifest;
  ends.append(...["picture", "← sampling", "noise"].map((text) => make("span", "", text)));
  steps.role = names.role = "group";
  steps.ariaLabel = "Guided steps";
  names.ariaLabel = "Named grids";
  const press = (name) => {
    for (const one of names.children) one.ariaPressed = one.textContent === NAMES[name];
  };
  const toggle = (k) => {
    choice.guided[k] = !choice.guided[k];
    mark();
    changed();
  };
  const moved = (grid) => {
    press(null); // no button stands for the reader's own grid
    choice.grid = grid;
    mark();
    changed();
  };
  const ticks = gridLine(line, {
    last: levels.values.length - 1,
    onChange: moved,
    onToggle: toggle,
  });

  // Each step as a button: its timestep, and its factor where it is guided.
  function mark() {
    const { grid, guided, guidance, budget } = choice,
      scales = scalesOf(levels, grid, { scale: guidance, guided }),
      rest = budget - cost(scales);
    const shown = stepsOf(levels, grid).map(({ ratio }, k) => {
      const value = factor(scales[k], ratio),
        unstable = !stable(value),
        one = { guided: scales[k] > 1, unstable, number: value.toFixed(2).replace("-", "−") };
      one.said = one.guided ? `guided, factor ${one.number}` : "not guided";
      if (unstable) one.said += ", unstable";
      return one;
    });
    while (steps.children.length > grid.length) steps.lastChild.remove();
    while (steps.children.length < grid.length) {
      const k = steps.children.length;
      steps.append(button("", () => toggle(k)));
    }
    shown.forEach((one, k) => {
      const element = steps.children[k];
      element.replaceChildren(make("b", "", grid[k]), one.guided ? one.number : "·");
      element.ariaPressed = one.guided;
      element.ariaLabel = `Guide step ${k + 1} (${grid[k]}): ${one.said}`;
      element.className = one.unstable ? "unstable" : "";
    });
    ticks.mark(shown);
    left.textContent = rest < 0 ? `${-rest} too many` : rest;
    start.disabled = rest < 0;
  }

  const lay = () => {
    choice.grid = [...grids[choice.named][choice.steps]];
    choice.guided = choice.grid.map((_, k) => choice.guided[k] ?? true);
    ticks.lay(choice.grid, grids.even[choice.steps]);
    press(choice.named);
    mark();
  };
  const layAgain = () => {
    lay();
    changed();
  };
  for (const name of Object.keys(grids)) {
    const choose = () => {
      choice.named = name;
      layAgain();
    };
    names.append(button(NAMES[name], choose), " ");
  }
  const hint =
    "Click or tap a tick, or press Space on it, to guide its step or not. Drag it, or move it by " +
    "the arrow keys (Page Up and Page Down: 50). Small marks show the even grid. Below each " +
    "timestep is the factor of a guided step; a striped step is unstable.";
  const last = make("p", "last");
  labelled(last, "Evaluations left", left);
  last.append(start);
  field.append(line, ends, steps, amounts, last, names, make("p", "hint", hint));
  lay();
  return { amounts, layAgain, mark };
}

function button(text, press) {
  const made = make("button", "", text);
  made.type = "button";
  made.addEventListener("click", press);
  return made;
}

function make(name, kind = "", text = "") {
  const element = document.createElement(name);
  if (kind) element.className = kind;
  element.textContent = text;
  return element;
}

function labelled(parent, label, ...parts) {
  const wrapped = make("label", "", label);
  for (const part of parts) wrapped.append(" ", part);
  parts[0].setAttribute("aria-label", label); // without it the value beside it is in the name
  parent.append(wrapped);
  return wrapped;
}

function select(parent, label, options, value, onChange) {
  const control = make("select");
  for (const [key, text] of options) control.add(new Option(text, key));
  control.value = value;
  control.addEventListener("change", () => onChange(control.value));
  return labelled(parent, label, control);
}

function range(parent, label, limits, value, onInput) {
  const control = Object.assign(make("input"), { type: "range", ...limits, value }),
    shown = make("output", "", String(value));
  control.addEventListener("input", () => {
    shown.textContent = control.value;
    onInput(Number(control.value));
  });
  return labelled(parent, label, control, shown);
}
