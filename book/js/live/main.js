// The model in the page: fetched on a click, then the reader's choices become three drawings.

import { controls } from "./controls.js";
import { load } from "./model.js";
import { caption } from "./prompt.js";
import { Studio } from "./studio.js";

export async function start({ root, viewer, slider, base, say }) {
  const find = (selector) => root.querySelector(selector),
    bar = find("progress");
  bar.hidden = false;
  const fetched = async (name) => {
    const answer = await fetch(new URL(name, base));
    if (!answer.ok) throw new Error(`${name} could not be fetched (${answer.status})`);
    return answer;
  };
  const manifest = await (await fetched("manifest.json")).json();
  const noise = new Float32Array(await (await fetched("noise.bin")).arrayBuffer());
  const model = await load(base, manifest, (share) => {
    bar.value = share;
    const percent = Math.round(100 * share);
    say(share < 1 ? `${percent} % of the model has arrived.` : "The model is being opened.");
  });
  find(".load button").hidden = true;
  bar.setAttribute("aria-label", "drawing");
  const choice = { ...manifest.start, grid: manifest.grids.measured[manifest.start.steps] };
  const studio = new Studio({ model, noise, viewer, slider, say, bar, pictures: find(".columns") });
  controls(root, manifest, choice, () => {
    find(".prompt-text").textContent = `“${caption(choice)}”`;
    studio.draw(choice);
  });
  find(".controls").hidden = false;
  studio.draw(choice, 0);
}
