// Output that is wider than a phone scrolls by itself: whoever has no pointer reaches it by Tab.
function reach() {
  for (const box of document.querySelectorAll(".cell_output")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
addEventListener("load", reach);
addEventListener("resize", reach);
addEventListener("toggle", reach, true); // a fold that opens shows output that had no width
