// What the bundled judge, a classifier of real compositions, says of a picture.

// The attributes that the picture does not show as the choice asks for them. `out` holds the
// features and then each head's logits.
export function wrong(out, { features, heads }, choice) {
  const wished = asked(choice),
    found = [];
  let place = features;
  for (const [head, classes] of Object.entries(heads)) {
    const logits = [...out.slice(place, place + classes.length)],
      seen = classes[logits.indexOf(Math.max(...logits))];
    place += classes.length;
    if (wished[head] !== undefined && wished[head] !== seen) found.push(head);
  }
  return found;
}

// The class that each head should see; a head that is left out may see anything.
function asked({ count, colour, garment, relation, colourB, garmentB, ground }) {
  const always = { colour_a: colour, garment_a: garment, ground, relation };
  if (relation !== "none") return { ...always, colour_b: colourB, garment_b: garmentB };
  return { ...always, count: ["one", "two", "three", "four"][count - 1] };
}

// The distance of two pictures' features, over the spread of real pictures' features.
export function featureDistance(one, other, { features, spread }) {
  let sum = 0;
  for (let i = 0; i < features; i++) sum += (one[i] - other[i]) ** 2;
  return Math.sqrt(sum) / spread;
}
