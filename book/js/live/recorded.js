// Shows the recorded frames, and offers the models where they can run. It stands in the page
// itself: a browser loads no module from a file.
(() => {
  const root = document.currentScript.closest(".asddim-live"),
    find = (selector) => root.querySelector(selector),
    slider = find(".step input"),
    bar = find(".download"),
    columns = [...root.querySelectorAll(".columns > div")],
    recorded = JSON.parse(root.dataset.recorded),
    strip = find(".strip");

  const HEADS = {
    colour_a: "colour",
    garment_a: "garment",
    colour_b: "second colour",
    garment_b: "second garment",
    count: "number",
  };

  // The lines below a picture: what it cost, how far its end is from the goal or how a race stands,
  // and what the judge sees in it.
  const notes = ({ evaluations, score, far, features, wrong }) => {
    let place = score ?? (far === 0 ? "the goal" : "");
    if (far) place = `latents ${far.toFixed(3)}, features ${features.toFixed(3)}`;
    const missed = wrong?.map((head) => HEADS[head] ?? head).join(", ");
    return [`${evaluations} evaluations`, place, wrong ? (missed ? `✗ ${missed}` : "✓ as asked") : ""];
  };

  // A race's ends, one for each starting noise.
  const showEnds = (box, ends) => {
    if (ends.length < box.children.length) box.replaceChildren();
    for (const { seed, frames, wrong } of ends.slice(box.children.length)) {
      const heat = box.appendChild(document.createElement("span")),
        canvas = heat.appendChild(document.createElement("canvas"));
      canvas.width = canvas.height = 64;
      frames.at(-1)(canvas.getContext("2d"));
      heat.append(wrong.length ? "✗" : "✓");
      canvas.role = "img";
      canvas.ariaLabel = `starting noise ${seed}`;
    }
  };

  // Three columns side by side. Each has a name, frames (functions that draw on a canvas), and what
  // `notes` needs, once it is known. A column with another number of frames than steps shows the
  // one as far on its way.
  const viewer = {
    steps: recorded.steps,
    columns: [],
    show() {
      slider.max = this.steps;
      const step = Number(slider.value);
      const said = `${step} of ${this.steps}`;
      find(".step output").value = said;
      slider.setAttribute("aria-valuetext", said);
      this.columns.forEach((column, k) => {
        const canvas = columns[k].querySelector("canvas"),
          context = canvas.getContext("2d");
        columns[k].querySelector("b").textContent = column.name;
        const lines = notes(column);
        columns[k].querySelectorAll("p span").forEach((span, n) => (span.textContent = lines[n]));
        const whole = column.whole ?? this.steps,
          place = Math.round((step / this.steps) * whole),
          frame = column.frames[Math.min(place, column.frames.length - 1)];
        if (frame) frame(context);
        else context.clearRect(0, 0, canvas.width, canvas.height);
        canvas.setAttribute("aria-label", `${column.name}, ${said} steps done`);
        showEnds(columns[k].querySelector(".heats"), column.ends ?? []);
      });
    },
  };

  const showRecorded = () => {
    viewer.columns = recorded.columns.map((column, row) => ({
      ...column,
      frames: Array.from({ length: recorded.steps + 1 }, (_, step) => (context) => {
        context.drawImage(strip, 64 * step, 64 * row, 64, 64, 0, 0, 64, 64);
      }),
    }));
    viewer.show();
    strip.hidden = true;
  };
  if (strip.complete) showRecorded();
  else strip.addEventListener("load", showRecorded);
  slider.addEventListener("input", () => viewer.show());

  const say = (text) => (find(".state").textContent = text);
  const reason = () => {
    if (root.dataset.missing) return root.dataset.missing;
    if (location.protocol === "file:")
      return "A browser runs no model in a page that was opened as a file: serve the folder, for instance by “python -m http.server”.";
    if (typeof WebAssembly !== "object") return "This browser has no WebAssembly, which runs the model.";
    return "";
  };
  const where = find(".state").textContent;
  if (reason()) {
    say(`${where} ${reason()}`);
    return;
  }

  // A button loads its model, and after that draws by it.
  const models = JSON.parse(root.dataset.models);
  let use = null, // what main.js draws by a model with
    current = null;
  const mark = () => {
    for (const model of models) {
      const { button, label, loaded, whole, rest } = model;
      button.disabled = false;
      button.textContent = label[0].toUpperCase() + label.slice(1);
      // What the models share comes with the first.
      if (!loaded) button.textContent = `Load the ${label} (${current ? rest : whole} MB)`;
      else button.setAttribute("aria-pressed", model === current);
    }
  };
  const arriving = ({ button, label }) => (share) => {
    bar.hidden = false;
    bar.value = share;
    const percent = Math.floor(100 * share);
    button.textContent = share < 1 ? `Loading the ${label}: ${percent} %` : `Opening the ${label}`;
  };
  const open = async (model) => {
    for (const { button } of models) button.disabled = true;
    try {
      const base = new URL("../live/", document.baseURI);
      const { start } = await import(new URL("main.js", base));
      use ??= await start({ root, viewer, slider, base, say });
      await use(model.name, arriving(model));
      model.loaded = true;
      current = model;
    } catch (error) {
      say(`The ${model.label} could not be loaded: ${error.message}. ${current ? "" : where}`);
    }
    bar.hidden = true;
    mark();
    // A button that is disabled loses the focus.
    if (document.activeElement === document.body) model.button.focus({ preventScroll: true });
  };
  for (const model of models) {
    model.button = document.createElement("button");
    model.button.type = "button";
    model.button.addEventListener("click", () => open(model));
    find(".models").append(model.button);
  }
  find(".models").hidden = false;
  mark();
})();
