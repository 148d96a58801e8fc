// The models in the page: fetched on a click, then the reader's choices become three drawings.

import { controls } from "./controls.js";
import { loader } from "./model.js";
import { caption } from "./prompt.js";
import { Studio } from "./studio.js";

// Gives what draws by a model from now on; the first time it loads that model. Meanwhile the other
// one goes on.
export async function start({ root, viewer, slider, base, say }) {
  const find = (selector) => root.querySelector(selector);
  const fetched = async (name) => {
    const answer = await fetch(new URL(name, base));
    if (!answer.ok) throw new Error(`${name} could not be fetched (${answer.status})`);
    return answer;
  };
  const manifest = await (await fetched("manifest.json")).json();
  const noise = new Float32Array(await (await fetched("noise.bin")).arrayBuffer());
  const load = loader(base, manifest),
    models = {},
    choice = { ...manifest.start, named: "measured", guided: [] };
  const bar = find(".drawing"),
    pictures = find(".columns"),
    paper = find(".result"),
    studio = new Studio({ manifest, noise, viewer, slider, say, bar, pictures, paper });
  paper.querySelector("button").addEventListener("click", () => copy(paper, say));

  return async (name, onProgress) => {
    models[name] ??= await load(name, onProgress);
    if (studio.model) studio.model.guidance = choice.guidance; // each model keeps its own
    const model = (studio.model = models[name]);
    choice.guidance = model.guidance;
    const changed = () => {
      find(".prompt-text").textContent = `“${caption(choice)}”`;
      studio.draw(choice);
    };
    controls(root, { ...manifest, ...model }, choice, changed, () => studio.race(choice));
    for (const part of root.querySelectorAll(".controls")) part.hidden = false;
    studio.draw(choice, 0);
  };
}

// A browser lets a page copy where it came by https or from this machine; elsewhere the reader does.
async function copy(paper, say) {
  const text = paper.querySelector("textarea");
  text.select();
  try {
    await navigator.clipboard.writeText(text.value);
    say("The result is copied.");
  } catch {
    say("Copy the result, which is selected.");
  }
}
