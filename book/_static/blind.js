// The blind test. A cell of the chapter prints each test with its names; this script hides them,
// shows the pairs without names, and counts. Without it the chapter is a list to open.
(() => {
  // The two-sided p-value of the sign test: `k` of `n` decided pairs for one grid, at a chance of ½.
  function signTest(k, n) {
    let part = 2 ** -n,
      tail = 0;
    for (let i = 0; i <= Math.min(k, n - k); i++) {
      tail += part;
      part *= (n - i) / (i + 1);
    }
    return Math.min(1, 2 * tail);
  }

  // "win", "tie" or "loss" of the grid that was chosen in `k` of `n` decided pairs.
  const verdict = (k, n) => (signTest(k, n) >= 0.05 ? "tie" : 2 * k > n ? "win" : "loss");

  // How many pairs more would decide, if the reader went on choosing alike: `k` of `n` decided pairs
  // after `shown` pairs. null where no number would, or more than `most` decided pairs.
  function morePairs(k, n, shown, most = 1000) {
    if (2 * k === n) return null;
    for (let total = n; total <= most; total++) {
      const alike = Math.floor((2 * k * total + n) / (2 * n)); // k / n of the total, rounded
      if (signTest(alike, total) < 0.05) return Math.ceil((total * shown) / n) - shown;
    }
    return null;
  }

  // Whether the first grid stands left, for each of `count` pairs: one coin a pair, from a seed.
  // Bits of a counter are mixed as murmur3 does at its end.
  function sides(seed, count) {
    return Array.from({ length: count }, (_, k) => {
      let bits = Math.imul(seed ^ Math.imul(k + 1, 0x9e3779b9), 0x85ebca6b);
      bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
      return (bits ^ (bits >>> 16)) >>> 31 === 1;
    });
  }

  const times = (count) => (count === 1 ? "1 pair" : `${count.toLocaleString("en")} pairs`);
  const percent = (p) => {
    if (p < 0.001) return "less than 0.1 %";
    return p < 0.1 ? `${(100 * p).toPrecision(2)} %` : `${Math.round(100 * p)} %`;
  };

  // The result in words: `first` and `second` are how often each grid was chosen, of `shown` pairs.
  function result([one, other], first, second, shown) {
    const decided = first + second,
      said = [`You chose ${one} in ${times(first)} and ${other} in ${times(second)}.`];
    if (decided < shown) said.push(`In ${times(shown - decided)} you saw no difference.`);
    if (!decided) return ["A tie: no pair is decided.", ...said].join("\n");
    const won = verdict(first, decided),
      p = percent(signTest(first, decided)),
      more = morePairs(first, decided, shown),
      chance = `Chance alone would split ${times(decided)} at least as unevenly in ${p} of tests.`;
    said.unshift(won === "tie" ? "A tie." : `A ${won} for ${one}.`);
    said.push(chance);
    if (won !== "tie") return said.join("\n");
    if (2 * first === decided) said.push("Choosing alike, no number of pairs would decide it.");
    else if (more === null) said.push("Choosing alike, more than 1,000 decided pairs would be needed.");
    else said.push(`If you went on choosing alike, ${times(more)} more would decide it.`);
    return said.join("\n");
  }

  const make = (name, parts = {}, ...children) => {
    const made = Object.assign(document.createElement(name), parts);
    made.append(...children);
    return made;
  };

  function blind(root) {
    const tests = [...root.querySelectorAll(".blind-test")],
      said = make("p", { className: "blind-said", tabIndex: -1 }),
      menu = make("div", { className: "blind-menu" }),
      prompt = make("p", { className: "blind-prompt" }),
      keys = make("p", { className: "blind-keys" }),
      images = ["Left", "Right"].map((side) => make("img", { alt: `${side} picture` })),
      answers = make("div", { className: "blind-answers" }),
      pair = make("div", { className: "blind-pair", tabIndex: -1 }),
      again = make("button", { type: "button", textContent: "Another test" }),
      stage = make("div", { className: "blind-stage" }, said);
    let test, pairs, left, chosen;
    said.setAttribute("role", "status");
    pair.setAttribute("role", "group");
    pair.setAttribute("aria-label", "Two pictures of one prompt");
    keys.textContent = "Keys: ← left, → right, ↓ no difference.";

    function choose() {
      tests.forEach((one) => (one.hidden = true));
      again.remove();
      stage.append(menu);
      said.textContent = "Three tests. The names of the grids appear after the last pair.";
    }

    function start(one) {
      test = one;
      pairs = [...test.querySelectorAll(".blind-pairs tbody tr")].map((row) => ({
        row,
        prompt: row.cells[0].textContent,
        pictures: [...row.querySelectorAll("img")],
      }));
      const seed = root.dataset.order ?? Math.floor(Math.random() * 2 ** 31);
      left = sides(Number(seed), pairs.length);
      chosen = [];
      test.querySelectorAll("mark").forEach((mark) => mark.remove());
      show();
      menu.remove();
      stage.append(pair);
      pair.focus({ preventScroll: true });
      stage.scrollIntoView({ block: "nearest" });
    }

    function show() {
      const { prompt: text, pictures } = pairs[chosen.length],
        shown = left[chosen.length] ? pictures : [...pictures].reverse();
      images.forEach((image, side) => (image.src = shown[side].src));
      prompt.textContent = text;
      said.textContent = `Pair ${chosen.length + 1} of ${pairs.length}: which picture is better?`;
    }

    // `side` is 0 for left, 1 for right, null for no difference.
    function answer(side) {
      const grid = side === null ? null : left[chosen.length] ? side : 1 - side;
      chosen.push(grid);
      if (chosen.length < pairs.length) show();
      else finish();
    }

    function finish() {
      const names = [test.dataset.one, test.dataset.other],
        counts = [0, 1].map((grid) => chosen.filter((one) => one === grid).length);
      chosen.forEach((grid, k) => {
        if (grid !== null) pairs[k].pictures[grid].after(make("mark", { textContent: "your choice" }));
      });
      pair.remove();
      stage.append(again);
      test.hidden = false;
      test.open = true;
      said.textContent = result(names, ...counts, pairs.length);
      said.focus();
    }

    tests.forEach((one) => {
      const button = make("button", { type: "button", textContent: one.dataset.title });
      button.addEventListener("click", () => start(one));
      menu.append(make("div", {}, button, one.querySelector(".blind-stake").cloneNode(true)));
    });
    [["← Left", 0], ["No difference", null], ["Right →", 1]].forEach(([textContent, side]) => {
      const button = make("button", { type: "button", textContent });
      button.addEventListener("click", () => answer(side));
      answers.append(button);
    });
    pair.addEventListener("keydown", (event) => {
      const side = { ArrowLeft: 0, ArrowRight: 1, ArrowDown: null }[event.key];
      if (side === undefined || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      answer(side);
    });
    again.addEventListener("click", () => {
      choose();
      menu.querySelector("button").focus();
    });
    pair.append(prompt, make("div", { className: "blind-pictures" }, ...images), answers, keys);
    root.prepend(stage);
    choose();
  }

  if (typeof module === "object") module.exports = { signTest, verdict, morePairs, sides, result };
  else
    addEventListener("DOMContentLoaded", () =>
      document.querySelectorAll(".asddim-blind").forEach(blind),
    );
})();
