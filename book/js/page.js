(phone) => {
  const found = [],
    say = (kind, what) => found.push([kind, what.replace(/\s+/g, " ").slice(0, 200)]);
  const dark = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light",
    theme = document.documentElement.dataset.theme;
  if (theme && theme !== dark) say("theme", `is ${theme} where ${dark} is asked for`);
  for (const image of document.images) {
    if (!image.complete || !image.naturalWidth)
      say("picture", `${image.src.slice(0, 80)} is not drawn`);
    if (!image.alt.trim() || /^\S+\.\w{3,4}$/.test(image.alt.trim()))
      say("picture", `${image.src.slice(0, 80)} has the alternative text "${image.alt}"`);
  }
  for (const formula of document.querySelectorAll(".math"))
    if (
      !formula.querySelector("mjx-container, svg") ||
      formula.querySelector("mjx-merror, [data-mjx-error]")
    )
      say("math", formula.textContent);
  if (phone) {
    const scrolls = (element) =>
      element &&
      element !== document.body &&
      (/auto|scroll/.test(getComputedStyle(element).overflowX) || scrolls(element.parentElement));
    const wide = [...document.body.querySelectorAll("*")].filter(
      (e) => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e),
    );
    const hidden = (e) =>
      getComputedStyle(e).position === "fixed" ||
      e.closest("mjx-assistive-mml, dialog, .sr-only, .visually-hidden");
    for (const e of wide.filter((e) => !hidden(e)).slice(0, 3))
      say("width", `${Math.round(e.getBoundingClientRect().right)}: ${e.outerHTML}`);
    if (document.documentElement.scrollWidth > innerWidth)
      say("width", `the page is ${document.documentElement.scrollWidth} wide`);
  }
  return found;
}
