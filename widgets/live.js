// Draws what the kernel says last. Whole figures, no edits: nothing can arrive too early or be lost.
// plotly.js is fetched from the kernel once a page, by whichever figure needs it first.

const SHARED = Symbol.for("minserve.plotly");

async function load(model) {
  const id = model.get("library").slice("IPY_MODEL_".length);
  const library = await model.widget_manager.get_model(id);
  const head = "const module = {exports: {}}, exports = module.exports; let define;\n";
  const code = head + library.get("source") + "\nexport default module.exports;";
  const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  try {
    return (await import(url)).default;
  } finally {
    URL.revokeObjectURL(url);
  }
}

function plotly(model) {
  globalThis[SHARED] ??= load(model).catch((error) => {
    globalThis[SHARED] = undefined; // The next figure tries again.
    throw error;
  });
  return globalThis[SHARED];
}

async function render({ model, el }) {
  const Plotly = await plotly(model);
  const place = document.createElement("div");
  el.append(place);

  let queue = Promise.resolve();
  let waiting = false;
  const draw = () => {
    if (waiting) return; // What is drawn next is the newest anyway.
    waiting = true;
    queue = queue.then(async () => {
      waiting = false;
      // plotly writes into what it is given.
      const [data, layout, config] = ["traces", "design", "config"].map((name) =>
        structuredClone(model.get(name)),
      );
      await Plotly.react(place, data, layout, config);
    }).catch((error) => console.error("a figure could not be drawn", error));
  };

  let width = 0;
  const watch = new ResizeObserver(() => {
    // Not while it is hidden, and not for a change that plotly made itself.
    if (el.offsetWidth === 0 || el.offsetWidth === width) return;
    width = el.offsetWidth;
    queue = queue.then(() => place.data && Plotly.Plots.resize(place)).catch(() => {});
  });
  draw();
  watch.observe(el);
  model.on("change:traces", draw);
  model.on("change:design", draw);
  return () => {
    watch.disconnect();
    model.off("change:traces", draw);
    model.off("change:design", draw);
    Plotly.purge(place);
  };
}

export default { render };
