// The controls beside the pictures. Each writes into `choice` and calls `changed`. They are made
// anew for another model.

import { gridLine } from "./grid.js";
import { plural } from "./prompt.js";

const NAMES = {
  measured: "Measured",
  even: "Even",
  paper: "The paper’s Eq 5",
  logsnr: "Even in log SNR",
  beta: "Beta",
};

export function controls(root, manifest, choice, changed) {
  const fields = [".prompt", ".settings", ".grid"].map((name) => root.querySelector(name));
  for (const field of fields) field.replaceChildren(field.querySelector("legend"));
  promptFields(fields[0], manifest.choices, choice, changed);
  const grid = gridField(fields[2], manifest, choice, changed);
  const counts = Object.keys(manifest.grids.even).map(Number);
  const limits = { min: counts[0], max: counts.at(-1), step: 1 };
  range(fields[1], "Guidance", { min: 1, max: 10, step: 0.5 }, choice.guidance, (value) => {
    choice.guidance = value;
    changed();
  });
  range(fields[1], "Steps", limits, choice.steps, (value) => {
    choice.steps = value;
    grid.layAgain();
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

function gridField(field, manifest, choice, changed) {
  const line = make("div", "line"),
    ends = make("p", "ends"),
    buttons = make("p", "named"),
    list = make("output"),
    { grids, levels } = manifest;
  ends.append(...["picture", "← sampling", "noise"].map((text) => make("span", "", text)));
  const press = (name) => {
    for (const button of buttons.children)
      button.setAttribute("aria-pressed", button.textContent === NAMES[name]);
  };
  const moved = (grid) => {
    press(null); // no button stands for the reader's own grid
    choice.grid = grid;
    list.textContent = grid.join(", ");
    changed();
  };
  const editor = gridLine(line, { last: levels.values.length - 1, onChange: moved });
  const lay = () => {
    choice.grid = [...grids[choice.named][choice.steps]];
    editor.lay(choice.grid, grids.even[choice.steps]);
    press(choice.named);
    list.textContent = choice.grid.join(", ");
  };
  const layAgain = () => {
    lay();
    changed();
  };
  for (const name of Object.keys(grids)) {
    const button = make("button", "", NAMES[name]);
    button.type = "button";
    button.addEventListener("click", () => {
      choice.named = name;
      layAgain();
    });
    buttons.append(button, " ");
  }
  const hint =
    "Drag a tick, or move it by the arrow keys; Page Up and Page Down go 50 timesteps. " +
    "The small marks below the line are the even grid.";
  field.append(line, ends, buttons, make("p", "hint", hint));
  labelled(field, "Timesteps", list);
  lay();
  return { layAgain };
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
