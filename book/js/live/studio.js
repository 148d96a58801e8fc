// Draws the reader's plan, the even grid and the fine one, from the same noise; or a race.

import { featureDistance, wrong } from "./judge.js";
import { cost, scalesOf } from "./plan.js";
import { caption } from "./prompt.js";
import { correct, racers, result, verdict } from "./race.js";
import { distance, sample } from "./sample.js";

const PAUSE = 250; // ms without a further change before the model draws
const SHOWN = 10; // pictures that the fine drawing shows on its way

export class Studio {
  constructor(parts) {
    Object.assign(this, parts);
    this.known = new Map(); // what was drawn before, by all that it depends on
    this.turn = 0;
  }

  // A new choice ends the drawing of the one before.
  draw(choice, pause = PAUSE) {
    return this.take(choice, pause, async (wish, still) => {
      const columns = this.columns(wish);
      Object.assign(this.viewer, { columns, steps: wish.steps });
      this.compare(columns);
      for (const column of columns) {
        await this.fill(column, wish, still);
        if (!still()) return;
        this.compare(columns);
      }
      this.say(summary(columns, this.measured(wish, columns)));
    });
  }

  // The reader's plan, the cap and the recipe on every starting noise, the chosen one first.
  race(choice) {
    return this.take(choice, 0, async (wish, still) => {
      const all = racers(wish, this.model),
        columns = all.map((one) => ({ ...this.column(wish, one, 1), ends: [] })),
        { seeds } = this.manifest;
      Object.assign(this.viewer, { columns, steps: wish.steps });
      this.viewer.show();
      for (const seed of [wish.seed, ...seeds.filter((one) => one !== wish.seed)])
        for (const [k, one] of all.entries()) {
          const chosen = seed === wish.seed,
            // Of the other noises only the ends are shown.
            column = chosen ? columns[k] : this.column({ seed }, one, one.grid.length);
          if (!chosen) this.say(`Racing on starting noise ${seed}.`);
          await this.fill(column, { ...wish, seed }, still);
          if (!still()) return;
          one.marks[seeds.indexOf(seed)] = column.wrong;
          columns[k].ends.push({ ...column, seed });
          columns[k].score = `${correct(one)} of ${columns[k].ends.length} correct`;
          this.viewer.show();
        }
      const address = location.protocol === "file:" ? "" : location.href.split("#")[0];
      this.paper.querySelector("textarea").value = result(
        all, wish, this.model.label, caption(wish), address,
      );
      this.paper.hidden = false;
      this.say(verdict(all));
    });
  }

  // Does some work for a choice, until the next one comes.
  async take(choice, pause, work) {
    const turn = ++this.turn,
      still = () => turn === this.turn,
      wish = structuredClone(choice);
    this.pictures.setAttribute("aria-busy", "true");
    this.say(""); // what was said holds for the choice before
    this.paper.hidden = true;
    await new Promise((resolve) => setTimeout(resolve, pause));
    if (!still()) return;
    try {
      this.context = await this.model.told(caption(wish));
      if (still()) await work(wish, still);
    } catch (error) {
      if (still()) this.say(`The model stopped: ${error.message}.`);
    }
    if (!still()) return;
    this.bar.hidden = true;
    this.pictures.setAttribute("aria-busy", "false");
  }

  // The three drawings of a choice.
  columns(wish) {
    const { grids, fine, levels } = this.model,
      { grid, guided, guidance, steps } = wish;
    return [
      ["Your plan", grid, guided],
      ["Even grid", grids.even[steps]],
      [`${fine.length} even steps`, fine],
    ].map(([name, grid, guided], k) => {
      const scales = scalesOf(levels, grid, { scale: guidance, guided });
      return this.column(wish, { name, grid, scales }, k === 2 ? grid.length / SHOWN : 1);
    });
  }

  // A drawing, with what is known of it already.
  column({ seed }, { name, grid, scales }, every) {
    const key = this.key(seed, scales, grid, every),
      fresh = { frames: [], whole: grid.length / every };
    const evaluations = cost(scales);
    return { name, grid, scales, evaluations, key, every, ...(this.known.get(key) ?? fresh) };
  }

  // Draws a column's frames and its end, unless they are known; leaves off where a newer choice has
  // come.
  async fill(column, wish, still) {
    if (column.end) return;
    const { model, bar, viewer, context } = this,
      { grid, scales, every } = column,
      place = this.manifest.seeds.indexOf(wish.seed),
      noise = this.noise.slice(place * model.size, (place + 1) * model.size),
      steps = grid.length;
    let image;
    const show = async (latents, done) => {
      image = await model.picture(latents);
      if (!still()) return;
      const drawn = image;
      column.frames.push((canvas) => canvas.putImageData(drawn, 0, 0));
      if (!viewer.columns.includes(column)) return;
      this.slider.value = Math.round((done / steps) * viewer.steps);
      viewer.show();
    };
    bar.hidden = false;
    bar.value = 0;
    if (every < steps) await show(noise, 0);
    const end = await sample({
      noise,
      grid,
      scales,
      levels: model.levels,
      evaluate: (latents, told, guided) => model.evaluate(latents, told, context, guided),
      onStep: async (done, latents, clean) => {
        if (!still()) return false;
        bar.value = done / steps;
        // A reader who listens would hear every step: what is drawn is said, the bar shows how far.
        if (done === 1 && every < steps) this.say(`Drawing: ${column.name.toLowerCase()}.`);
        if (done % every === 0) await show(done === steps ? latents : clean, done);
        return still();
      },
    });
    if (!end) return;
    const said = await model.judged(image);
    Object.assign(column, { end, said, wrong: wrong(said, this.manifest.judge, wish) });
    const { frames, whole } = column;
    this.known.set(column.key, { frames, whole, end, said, wrong: column.wrong });
  }

  // Notes each end's distance from the fine one, once both are there.
  compare(columns) {
    const goal = columns.at(-1);
    for (const column of columns) {
      if (!column.end || !goal.end) continue;
      column.far = distance(column.end, goal.end);
      column.features = featureDistance(column.said, goal.said, this.manifest.judge);
    }
    this.viewer.show();
  }

  // The measured grid's distance from the goal, where that grid was drawn with this choice before.
  measured({ seed, guidance, steps }, columns) {
    const { grids, levels } = this.model,
      scales = scalesOf(levels, grids.measured[steps], { scale: guidance }),
      drawn = this.known.get(this.key(seed, scales, grids.measured[steps], 1));
    return drawn && distance(drawn.end, columns.at(-1).end);
  }

  key(seed, scales, grid, every) {
    return JSON.stringify([this.model.name, this.model.text, seed, scales, grid, every]);
  }
}

function summary([own, even], measured) {
  const name = own.far === measured ? "The measured grid" : "Your plan",
    word = own.far < even.far ? "nearer to" : "farther from",
    first = `${name} ends ${word} the goal than the even grid.`;
  const sentence = own.far === even.far ? "Your plan is the even grid." : first;
  if (measured === undefined || own.far === measured) return sentence;
  return `${sentence} The measured grid’s distance in latents is ${measured.toFixed(3)}.`;
}
