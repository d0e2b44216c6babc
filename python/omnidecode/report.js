"use strict";
// What an element says of itself is shown at the bottom; everything of the same forward lights up; arrows walk.
const details = document.getElementById("details");
const members = (of) => of.closest("article").querySelectorAll('[data-f="' + of.dataset.f + '"]');
let lit = null;
function show(found) {
  if (found === lit) return;
  if (lit) members(lit).forEach((each) => each.classList.remove("hot"));
  if (found) members(found).forEach((each) => each.classList.add("hot"));
  lit = found;
  details.hidden = !found;
  details.textContent = found ? found.getAttribute("aria-label") || found.dataset.label : "";
}
const token = (event) => event.target instanceof Element ? event.target.closest("[data-f]") : null;
document.addEventListener("mouseover", (event) => show(token(event) || token({ target: document.activeElement })));
document.addEventListener("focusin", (event) => show(token(event)));
document.addEventListener("focusout", () => show(null));
document.addEventListener("keydown", (event) => {
  const from = token({ target: document.activeElement });
  if (!from) return;
  if (event.key === "Escape") { from.blur(); return; }
  const group = [...from.closest("[data-walk]").querySelectorAll("[data-f][tabindex]")];
  const at = group.indexOf(from);
  const next = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: group.length - 1 }[event.key];
  if (next === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  if (group[next]) group[next].focus();
});
