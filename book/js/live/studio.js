// Draws the reader's grid, the even one and the fine one, from the same noise.

import { featureDistance, wrong } from "./judge.js";
import { caption } from "./prompt.js";
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
  async draw(choice, pause = PAUSE) {
    const turn = ++this.turn,
      wish = structuredClone(choice);
    this.pictures.setAttribute("aria-busy", "true");
    this.say(""); // what was said holds for the choice before
    await new Promise((resolve) => setTimeout(resolve, pause));
    if (turn !== this.turn) return;
    try {
      const context = await this.model.told(caption(wish));
      if (turn !== this.turn) return;
      const columns = this.columns(wish);
      Object.assign(this.viewer, { columns, steps: wish.steps });
      this.compare(columns);
      for (const column of columns) {
        if (!column.end) await this.fill(column, wish, context, turn);
        if (turn !== this.turn) return;
        this.compare(columns);
      }
      this.say(summary(columns, this.measured(wish, columns)));
    } catch (error) {
      if (turn === this.turn) this.say(`The model stopped: ${error.message}.`);
    }
    if (turn !== this.turn) return;
    this.bar.hidden = true;
    this.pictures.setAttribute("aria-busy", "false");
  }

  // The three drawings of a choice, with what is known of them already.
  columns({ grid, steps, seed, guidance }) {
    const { grids, fine } = this.model;
    return [
      ["Your grid", grid],
      ["Even grid", grids.even[steps]],
      [`${fine.length} even steps`, fine],
    ].map(([name, timesteps], k) => {
      const key = this.key(seed, guidance, timesteps);
      const every = k === 2 ? timesteps.length / SHOWN : 1;
      const fresh = { frames: [], whole: timesteps.length / every };
      return { name, grid: timesteps, key, every, ...(this.known.get(key) ?? fresh) };
    });
  }

  // Draws a column's frames and its end; leaves off where a newer choice has come.
  async fill(column, wish, context, turn) {
    const { model, bar, viewer } = this,
      { seed, guidance } = wish,
      place = this.manifest.seeds.indexOf(seed),
      noise = this.noise.slice(place * model.size, (place + 1) * model.size),
      steps = column.grid.length;
    let image;
    const show = async (latents, done) => {
      image = await model.picture(latents);
      if (turn !== this.turn) return;
      const drawn = image;
      column.frames.push((canvas) => canvas.putImageData(drawn, 0, 0));
      this.slider.value = Math.round((done / steps) * viewer.steps);
      viewer.show();
    };
    bar.hidden = false;
    bar.value = 0;
    await show(noise, 0);
    const end = await sample({
      noise,
      guidance,
      grid: column.grid,
      levels: model.levels,
      evaluate: (latents, told) => model.evaluate(latents, told, context),
      onStep: async (done, latents, clean) => {
        if (turn !== this.turn) return false;
        bar.value = done / steps;
        // A reader who listens would hear every step: what is drawn is said, the bar shows how far.
        if (done === 1) this.say(`Drawing: ${column.name.toLowerCase()}.`);
        if (done % column.every === 0) await show(done === steps ? latents : clean, done);
        return turn === this.turn;
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
    const grid = this.model.grids.measured[steps],
      drawn = this.known.get(this.key(seed, guidance, grid));
    return drawn && distance(drawn.end, columns.at(-1).end);
  }

  key(seed, guidance, timesteps) {
    return JSON.stringify([this.model.name, this.model.text, seed, guidance, timesteps]);
  }
}

function summary([own, even], measured) {
  const name = own.far === measured ? "The measured grid" : "Your grid",
    word = own.far < even.far ? "nearer to" : "farther from",
    first = `${name} ends ${word} the goal than the even one.`;
  const sentence = own.far === even.far ? "Your grid is the even one." : first;
  if (measured === undefined || own.far === measured) return sentence;
  return `${sentence} The measured grid’s distance in latents is ${measured.toFixed(3)}.`;
}
