// The prompts that the model knows, and their tokens.

export function caption({ count, colour, garment, relation, colourB, garmentB, ground }) {
  const first = relation === "none" && count > 1 ? several(count, colour, garment) : one(colour, garment);
  const all = relation === "none" ? first : `${first} ${relation} ${one(colourB, garmentB)}`;
  return `${all} on a ${ground} ground`;
}

function one(colour, garment) {
  if (garment === "trousers") return `${colour} trousers`;
  return `${"aeiou".includes(colour[0]) ? "an" : "a"} ${colour} ${garment}`;
}

function several(count, colour, garment) {
  return `${["one", "two", "three", "four"][count - 1]} ${colour} ${plural(garment)}`;
}

export function plural(garment) {
  if (garment === "trousers") return garment;
  return garment + (garment.endsWith("s") ? "es" : "s");
}

// The tokenizer cuts each word by itself, so a table of the grammar's words is all of it.
export function tokens(text, { words, begin, end, pad, length }) {
  const ids = text.split(" ").filter(Boolean).flatMap((word) => words[word]);
  const row = [begin, ...ids, end];
  return [...row, ...Array(length - row.length).fill(pad)];
}
