() =>
  [...document.querySelectorAll("article *")]
    .filter(
      (e) =>
        e.checkVisibility() &&
        e.getBoundingClientRect().right > innerWidth + 1 &&
        !e.closest("mjx-assistive-mml"),
    )
    .map(
      (e) =>
        `${Math.round(e.getBoundingClientRect().right)} of ${innerWidth}: ${e.outerHTML.slice(0, 150).replace(/\s+/g, " ")}`,
    )
