({ title, author }) => {
  const article = document.querySelector("article.bd-article"),
    make = (name, text, into) => {
      const made = into.appendChild(document.createElement(name));
      made.textContent = text;
      return made;
    };
  article
    .querySelectorAll(".headerlink, .viewcode-link, .asddim-explorer label, button")
    .forEach((e) => e.remove());
  article
    .querySelectorAll(":is(.tag_hide-input, .tag_hide-cell):not(.tag_solution) details")
    .forEach((e) => e.remove());
  article.querySelectorAll("details").forEach((e) => {
    e.querySelector("summary").remove();
    e.replaceWith(...e.childNodes);
  });
  article.querySelectorAll(".cell").forEach((e) => {
    if (!e.textContent.trim() && !e.querySelector("img")) e.remove();
  });
  article.querySelectorAll(".toctree-wrapper :is(h2, h3, h4)").forEach((old) => {
    // chapters stand beside the first, not in it
    const raised = document.createElement(`h${old.tagName[1] - 1}`);
    raised.append(...old.childNodes);
    old.replaceWith(raised);
  });
  const front = document.createElement("header"),
    contents = document.createElement("nav");
  make("p", title, front).className = "title";
  make("p", author, front);
  make("p", "Contents", contents).className = "title";
  article.querySelectorAll("h1, h2").forEach((heading, k) => {
    if (heading.textContent === "Exercises") return;
    heading.id = `part-${k}`;
    const line = contents.appendChild(document.createElement("p")),
      link = make("a", heading.textContent, line);
    line.className = heading.tagName;
    link.href = `#part-${k}`;
    make("span", "", line);
  });
  article.querySelector("section").id = "document-chapters/start";
  document.documentElement.className = "printed";
  document.body.className = "bd-content";
  document.body.replaceChildren(front, contents, article);
}
