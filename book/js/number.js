(pages) =>
  document
    .querySelectorAll("nav p:not(.title)")
    .forEach((line, k) => (line.querySelector("span").textContent = pages[k]))
