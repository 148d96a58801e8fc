async () => {
  const found = [],
    say = (kind, what) => found.push([kind, what.replace(/\s+/g, " ").slice(0, 200)]),
    column = document.querySelector("article, main") ?? document.body,
    right = (e) => e.getBoundingClientRect().right;
  // Tables and lines of code that end where nobody sees them, in nothing that scrolls.
  for (const e of document.querySelectorAll("table, pre")) {
    const end = Math.max(right(e), e.getBoundingClientRect().left + e.scrollWidth);
    let box = e;
    while (box && box !== column && !/auto|scroll/.test(getComputedStyle(box).overflowX)) {
      if (/hidden|clip/.test(getComputedStyle(box).overflowX) && end > right(box) + 1) break;
      box = box.parentElement;
    }
    const kept = box && /auto|scroll/.test(getComputedStyle(box).overflowX) && box !== column;
    if (e.checkVisibility() && !kept && box && end > right(box) + 1)
      say("cut", `${Math.round(end - right(box))} px of ${e.outerHTML}`);
  }
  // A figure's letters are text, or matplotlib's glyphs, which it draws 100 units tall and scales.
  const least = (svg, shown) => {
    const scale = shown / svg.viewBox.baseVal.width,
      glyphs = [...svg.querySelectorAll('g[id^="text_"] > g[transform*="scale("]')].map(
        (g) => 100 * parseFloat(g.getAttribute("transform").split("scale(")[1]),
      ),
      texts = [...svg.querySelectorAll("text")].map((t) => parseFloat(getComputedStyle(t).fontSize));
    return scale * Math.min(...glyphs, ...texts);
  };
  const judge = (e, svg) => {
    const size = least(svg, e.getBoundingClientRect().width);
    if (size < 9) say("letters", `${size.toFixed(1)} px in ${e.outerHTML}`);
  };
  for (const e of document.querySelectorAll("svg"))
    if (e.checkVisibility() && e.viewBox.baseVal?.width) judge(e, e);
  for (const e of document.images)
    if (e.checkVisibility() && /\.svg$|^data:image\/svg/.test(e.src)) {
      const page = new DOMParser().parseFromString(await (await fetch(e.src)).text(), "text/html"),
        svg = document.body.appendChild(page.querySelector("svg"));
      if (svg.viewBox.baseVal?.width) judge(e, svg);
      svg.remove();
    }
  return found;
}
