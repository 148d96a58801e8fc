// The reader's plan against the cap and the recipe, on the same noise and the same budget.

import { cost, scalesOf, within, written } from "./plan.js";

const CAP = 2; // GuidancePlan.capped()'s

// The three plans, each with its grid. The reader has a grid; the others take even steps.
export function racers({ grid, guided, guidance, budget }, { levels, grids, recipe }) {
  const even = (plan) => within(budget, levels, grids.even, plan),
    capped = { scale: guidance, cap: CAP };
  return [
    { name: "Your plan", title: `at ${guidance}`, grid, plan: { scale: guidance, guided } },
    { name: "The cap", title: `at ${guidance}, capped`, grid: even(capped), plan: capped },
    { name: "The recipe", title: `at ${recipe.scale}`, grid: even(recipe), plan: recipe },
  ].map((one) => {
    const scales = scalesOf(levels, one.grid, one.plan);
    return { ...one, scales, marks: [] };
  });
}

export const correct = ({ marks }) => marks.filter((wrong) => !wrong.length).length;

// The result as text, to be sent to somebody.
export function result(all, { budget }, model, prompt, address) {
  const lines = all.map((one) => {
    const marks = one.marks.map((wrong) => (wrong.length ? "✗" : "✓")).join(""),
      plan = `${written(one.scales)} ${one.title}, ${cost(one.scales)} evaluations`;
    return `${marks} ${correct(one)} of ${one.marks.length} correct. ${one.name}: ${plan}`;
  });
  const head = `A budget of ${budget} evaluations, ${model}, “${prompt}”`;
  return [head, ...lines, address].filter(Boolean).join("\n");
}

// The race in words.
export function verdict([own, ...others]) {
  const mine = correct(own),
    best = Math.max(...others.map(correct)),
    word = mine > best ? "You lead" : mine < best ? "You trail" : "Level";
  const rest = others.map((one) => `${one.name.toLowerCase()} ${correct(one)}`).join(", ");
  return `${word}: your plan draws ${mine} of ${own.marks.length} correct, ${rest}.`;
}
