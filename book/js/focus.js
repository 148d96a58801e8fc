() => {
  const e = document.activeElement;
  if (!e || e === document.body || e.dataset.seen) return null;
  e.dataset.seen = 1;
  const box = e.getBoundingClientRect(),
    style = getComputedStyle(e),
    name = e.outerHTML.slice(0, 120);
  if (!box.width || !box.height || box.bottom < 0 || box.top > innerHeight)
    return `out of sight: ${name}`;
  if ((style.outlineStyle === "none" || style.outlineWidth === "0px") && style.boxShadow === "none")
    return `not shown: ${name}`;
  return "";
}
