// The grid as ticks on a line, from the picture on the left to noise on the right, as in the book's
// figures. A tick moves by pointer and by keyboard, never past its neighbours. The keys are the grid
// editor's.

const KEYS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -50, PageUp: 50 };

// `onChange` is handed the grid, timesteps in decreasing order, whenever the reader moved a tick.
export function gridLine(line, { last, onChange }) {
  let grid = [],
    beside = [],
    held = -1;
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
      const goal = { Home: least, End: most }[event.key] ?? grid[k] + times * by;
      if (Number.isNaN(goal)) return;
      event.preventDefault();
      move(k, goal);
    });
    return element;
  }

  const under = (event) => {
    const box = line.getBoundingClientRect();
    return Math.round((last * (event.clientX - box.left)) / box.width);
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
