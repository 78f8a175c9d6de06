// Brings the page to this place, and the keyboard with it, when it is first shown.

function render({ model, el }) {
  if (!model.get("fresh")) return;
  model.set("fresh", false); // Not again when the page is loaded anew.
  model.save_changes();
  el.tabIndex = -1;
  el.style.outline = "none";
  // What arrives in the same turn is laid out first.
  requestAnimationFrame(() => requestAnimationFrame(() => {
    el.scrollIntoView({ block: "start" });
    el.focus({ preventScroll: true });
  }));
}

export default { render };
