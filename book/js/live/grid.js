// The grid as ticks on a line, from noise on the left to the picture on the right. A tick moves by
// pointer and by keyboard, never past its neighbours. The keys go as far as the grid editor's.

const KEYS = { ArrowRight: -1, ArrowUp: -1, ArrowLeft: 1, ArrowDown: 1, PageUp: -50, PageDown: 50 };

// `onChange` is handed the grid, timesteps in decreasing order, whenever the reader moved a tick.
export function gridLine(line, { last, onChange }) {
  let grid = [],
    beside = [],
    held = -1;
  const place = (t) => `${(100 * (last - t)) / last}%`;

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
      // A slider's value grows to the right, timesteps to the left.
      element.setAttribute("aria-valuemin", last - most);
      element.setAttribute("aria-valuemax", last - least);
      element.setAttribute("aria-valuenow", last - grid[k]);
      element.setAttribute("aria-valuetext", `timestep ${grid[k]}`);
      element.title = `step ${k + 1}: timestep ${grid[k]}`;
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
      const [least, most] = room(k);
      const by = KEYS[event.key] ?? NaN,
        times = event.shiftKey && Math.abs(by) === 1 ? 10 : 1;
      const goal = { Home: most, End: least }[event.key] ?? grid[k] + times * by;
      if (Number.isNaN(goal)) return;
      event.preventDefault();
      move(k, goal);
    });
    return element;
  }

  const under = (event) => {
    const box = line.getBoundingClientRect();
    return Math.round(last * (1 - (event.clientX - box.left) / box.width));
  };
  line.addEventListener("pointerdown", (event) => {
    // The tick nearest to the pointer: a finger is wider than a tick.
    const t = under(event),
      far = grid.map((own) => Math.abs(own - t));
    held = far.indexOf(Math.min(...far));
    line.setPointerCapture(event.pointerId);
    line.querySelectorAll("[role=slider]")[held].focus({ preventScroll: true });
    event.preventDefault();
    move(held, t);
  });
  line.addEventListener("pointermove", (event) => {
    if (held >= 0) move(held, under(event));
  });
  for (const end of ["pointerup", "pointercancel"])
    line.addEventListener(end, () => {
      held = -1;
    });

  return {
    // Lays a grid, with the marks of another one below it.
    lay(own, marks) {
      grid = [...own];
      beside = marks;
      draw();
    },
  };
}
