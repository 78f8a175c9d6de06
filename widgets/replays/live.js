// Draws what the kernel says last. Whole figures, no edits: nothing can arrive too early or be lost.
// plotly.js comes from the kernel once a page, in the model of the library, and is read while the
// reader still reads: anywidget drops every later word to a model that was made while a busy page
// could not answer for two seconds.

const SHARED = Symbol.for("minserve.plotly");

async function load(source) {
  const head = "const module = {exports: {}}, exports = module.exports; let define;\n";
  const code = head + source + "\nexport default module.exports;";
  const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  try {
    return (await import(url)).default;
  } finally {
    URL.revokeObjectURL(url);
  }
}

function shared(source) {
  globalThis[SHARED] ??= load(source).catch((error) => {
    globalThis[SHARED] = undefined; // The next figure tries again.
    throw error;
  });
  return globalThis[SHARED];
}

function initialize({ model }) {
  const source = model.get("source");
  if (source) setTimeout(() => shared(source).catch(() => {}), 0);
}

async function plotly(model) {
  const id = model.get("library").slice("IPY_MODEL_".length);
  const library = await model.widget_manager.get_model(id);
  return shared(library.get("source"));
}

async function render({ model, el }) {
  const Plotly = await plotly(model);
  const place = document.createElement("div");
  el.append(place);

  let queue = Promise.resolve();
  let waiting = false;
  let drawn = 0; // The width of what is drawn; 0 while it is not the newest.
  const draw = () => {
    drawn = 0;
    if (waiting) return; // What is drawn next is the newest anyway.
    if (el.offsetWidth === 0) return; // Hidden, where no label has a size: drawn when it is shown.
    waiting = true;
    queue = queue.then(async () => {
      waiting = false;
      // plotly writes into what it is given.
      const [data, layout, config] = ["traces", "design", "config"].map((name) =>
        structuredClone(model.get(name)),
      );
      drawn = layout.width = el.offsetWidth;
      // As wide as its place, by the observer below: plotly's own way forgets the height.
      await Plotly.react(place, data, layout, { ...config, responsive: false });
    }).catch((error) => console.error("a figure could not be drawn", error));
  };

  const watch = new ResizeObserver(() => {
    if (el.offsetWidth !== 0 && el.offsetWidth !== drawn) draw();
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

export default { initialize, render };
