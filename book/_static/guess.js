// Guess before you look: a box with a question, a numbered list of options, and an answer to open
// that begins with the right option's number. The options become buttons. One guess says whether it
// is right, and opens the answer. Without this script the box is read as it stands.
(() => {
  function guess(box) {
    const answer = box.querySelector("details"),
      right = Number.parseInt(answer.querySelector("strong").textContent, 10),
      said = document.createElement("p"),
      options = [...box.querySelectorAll("ol > li")].map(option);
    said.setAttribute("role", "status");
    said.className = "guess-said";
    answer.before(said);
    answer.addEventListener("toggle", () => answer.open && settle());

    // An option's text inside a button; it is not one of HTML's, so that print keeps its text.
    function option(item, k) {
      const button = document.createElement("div");
      button.setAttribute("role", "button");
      button.setAttribute("aria-pressed", "false");
      button.tabIndex = 0;
      button.append(...item.childNodes);
      item.append(button);
      button.addEventListener("click", () => choose(k));
      button.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        choose(k);
      });
      return button;
    }

    function choose(k) {
      if (box.classList.contains("guess-done")) return;
      options[k].setAttribute("aria-pressed", "true");
      said.textContent = k + 1 === right ? "Right." : `No: it is option ${right}.`;
      answer.open = true;
      settle();
    }

    // Marks the right option. From now on there is nothing to guess.
    function settle() {
      box.classList.add("guess-done");
      options[right - 1].parentElement.classList.add("guess-right");
      for (const button of options) button.setAttribute("aria-disabled", "true");
    }
  }

  addEventListener("DOMContentLoaded", () =>
    document.querySelectorAll(".admonition.guess").forEach(guess),
  );
})();
