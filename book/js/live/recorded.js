// Shows the recorded frames, and offers the model where it can run. It stands in the page itself:
// a browser loads no module from a file.
(() => {
  const root = document.currentScript.closest(".asddim-live"),
    find = (selector) => root.querySelector(selector),
    slider = find(".step input"),
    button = find(".load button"),
    columns = [...root.querySelectorAll(".columns > div")],
    recorded = JSON.parse(root.dataset.recorded),
    strip = find(".strip");

  // Three columns side by side. Each has a name, a note, and frames: functions that draw on a canvas.
  // A column with another number of frames than steps shows the one as far on its way.
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
        columns[k].querySelector("span").textContent = column.note;
        const whole = column.whole ?? this.steps,
          place = Math.round((step / this.steps) * whole),
          frame = column.frames[Math.min(place, column.frames.length - 1)];
        if (frame) frame(context);
        else context.clearRect(0, 0, canvas.width, canvas.height);
        canvas.setAttribute("aria-label", `${column.name}, ${said} steps done. ${column.note}`);
      });
    },
  };

  const showRecorded = () => {
    viewer.columns = recorded.names.map((name, row) => {
      const far = recorded.distances[row];
      return {
        name,
        note: far ? `distance ${far.toFixed(3)}` : "the goal",
        frames: Array.from({ length: recorded.steps + 1 }, (_, step) => (context) => {
          context.drawImage(strip, 64 * step, 64 * row, 64, 64, 0, 0, 64, 64);
        }),
      };
    });
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
  button.textContent = `Load the model (${root.dataset.megabytes} MB)`;
  button.hidden = false;
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const base = new URL("../live/", document.baseURI);
      const { start } = await import(new URL("main.js", base));
      await start({ root, viewer, slider, base, say });
    } catch (error) {
      say(`The model could not be loaded: ${error.message}. ${where}`);
      find("progress").hidden = true;
      button.disabled = false;
    }
  });
})();
