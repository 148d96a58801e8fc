// The grid as ticks on a line, from the picture on the left to noise on the right, as in the book's
// figures. A tick moves by pointer and by keyboard, never past its neighbours. A click, a tap, Space
// or Enter guides its step, or ceases to. The keys are the grid editor's.

const KEYS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -50, PageUp: 50 };
const STILL = 3, // pixels that a click may move
  NEAR = 24; // pixels between a tap and its tick

// `onChange` is handed the grid, timesteps in decreasing order, whenever the reader moved a tick, and
// `onToggle` the number of a step.
export function gridLine(line, { last, onChange, onToggle }) {
  let grid = [],
    beside = [],
    held = null;
  const place = (t) => `${(100 * t) / last}%`;

  // The least and the greatest timestep that tick k may have.
  const room = (k) => [(grid[k + 1] ?? -1) + 1, (grid[k - 1] ?? last + 1) - 1];

  function move(k, t) {
    const [least, most] = room(k),
      goal = Math.min(most, Math.max(least, t));
    if (goal === grid[k]) return;
    grid[k] = goal;
    draw();
    onChange([...grid]);
  }

  function draw() {
    const ticks = [...line.querySelectorAll("[role=slider]")];
    while (ticks.length > grid.length) ticks.pop().remove();
    while (ticks.length < grid.length) ticks.push(line.appendChild(tick(ticks.length)));
    ticks.forEach((element, k) => {
      const [least, most] = room(k);
      element.style.left = place(grid[k]);
      element.setAttribute("aria-label", `step ${k + 1} of ${grid.length}`);
      element.setAttribute("aria-valuemin", least);
      element.setAttribute("aria-valuemax", most);
      element.setAttribute("aria-valuenow", grid[k]);
    });
    line.querySelectorAll("i").forEach((mark) => mark.remove());
    for (const t of beside) {
      const mark = document.createElement("i");
      mark.style.left = place(t);
      line.append(mark);
    }
  }

  function tick(k) {
    const element = document.createElement("span");
    element.setAttribute("role", "slider");
    element.tabIndex = 0;
    element.addEventListener("keydown", (event) => {
      const toggles = event.key === " " || event.key === "Enter";
      const [least, most] = room(k);
      const by = KEYS[event.key] ?? NaN,
        times = event.shiftKey && Math.abs(by) === 1 ? 10 : 1;
      const goal = { Home: least, End: most }[event.key] ?? grid[k] + times * by;
      if (!toggles && Number.isNaN(goal)) return;
      event.preventDefault();
      if (!toggles) move(k, goal);
      else if (!event.repeat) onToggle(k);
    });
    return element;
  }

  const timesteps = (pixels) => Math.round((last * pixels) / line.clientWidth);
  line.addEventListener("pointerdown", (event) => {
    // The tick nearest to the pointer: a finger is wider than a tick.
    const ticks = [...line.querySelectorAll("[role=slider]")],
      far = ticks.map((one) => {
        const { left, width } = one.getBoundingClientRect();
        return Math.abs(left + width / 2 - event.clientX);
      }),
      least = Math.min(...far),
      k = far.indexOf(least);
    held = { k, t: grid[k], x: event.clientX, still: true, near: least < NEAR };
    line.setPointerCapture(event.pointerId);
    ticks[k].focus({ preventScroll: true });
    event.preventDefault();
  });
  line.addEventListener("pointermove", (event) => {
    if (!held) return;
    const by = event.clientX - held.x;
    held.still &&= Math.abs(by) <= STILL;
    if (!held.still) move(held.k, held.t + timesteps(by));
  });
  line.addEventListener("pointerup", () => {
    if (held?.still && held.near) onToggle(held.k);
    held = null;
  });
  line.addEventListener("pointercancel", () => (held = null));

  return {
    // Lays a grid, with the marks of another one below it.
    lay(own, marks) {
      grid = [...own];
      beside = marks;
      draw();
    },
    // Shows of each step whether it is guided, and whether it is stable.
    mark(steps) {
      [...line.querySelectorAll("[role=slider]")].forEach((element, k) => {
        const { guided, unstable, said } = steps[k];
        element.classList.toggle("guided", guided);
        element.classList.toggle("unstable", unstable);
        element.setAttribute("aria-valuetext", `timestep ${grid[k]}, ${said}`);
        element.title = `step ${k + 1}: timestep ${grid[k]}, ${said}`;
      });
    },
  };
}
