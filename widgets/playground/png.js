// A button that saves the first plot of its panel as PNG, with what it shows above and where it
// comes from below: a picture travels without its page. plotly.js is the one that drew the plot.

const SHARED = Symbol.for("minserve.plotly");
const LEFT = 14;
const TITLE = { size: 15, line: 20, letter: 8.6 };
const SOURCE = { size: 11, line: 15, letter: 6.4 };

function wrapped(text, width, { letter }) {
  const most = Math.max(20, Math.floor(width / letter));
  const lines = [];
  for (const word of text.split(" ")) {
    const longer = `${lines.at(-1)} ${word}`;
    if (lines.length && longer.length <= most) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines;
}

function words(lines, { size }, place) {
  const plain = (line) =>
    line.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  return {
    text: lines.map(plain).join("<br>"), align: "left", showarrow: false,
    font: { size, color: "#333333" },
    xref: "paper", yref: "paper", x: 0, xanchor: "left", ...place,
  };
}

// The layout with a title and a source in margins of their own: the plot stays as large as it is.
function framed(plot, title, source) {
  const { l, r, t, b } = plot._fullLayout._size;
  const width = plot.offsetWidth - 2 * LEFT;
  const heading = wrapped(title, width, TITLE);
  const origin = wrapped(source, width, SOURCE);
  const above = heading.length * TITLE.line + LEFT;
  const below = origin.length * SOURCE.line + LEFT;
  const layout = { ...plot.layout, paper_bgcolor: "#ffffff" };
  layout.margin = { ...layout.margin, l, r, t: t + above, b: b + below };
  layout.height = plot.offsetHeight + above + below;
  layout.width = plot.offsetWidth;
  const xshift = LEFT - l;
  layout.annotations = [
    ...(layout.annotations ?? []),
    words(heading, TITLE, { y: 1, yanchor: "bottom", yshift: t, xshift }),
    words(origin, SOURCE, { y: 0, yanchor: "top", yshift: -b, xshift }),
  ];
  return layout;
}

async function save(panel, model) {
  const plot = panel?.querySelector(".js-plotly-plot");
  if (!plot || !globalThis[SHARED]) return "There is no figure yet: run the comparison first.";
  const Plotly = await globalThis[SHARED];
  const layout = framed(plot, model.get("heading"), model.get("source"));
  const size = { width: layout.width, height: layout.height, scale: 2 };
  const url = await Plotly.toImage({ data: plot.data, layout }, { format: "png", ...size });
  const link = document.createElement("a");
  link.href = url;
  link.download = model.get("name");
  link.click();
  return "";
}

function render({ model, el }) {
  const button = document.createElement("button");
  button.className = "lm-Widget jupyter-widgets jupyter-button widget-button";
  button.textContent = "PNG";
  button.title = "Save the strips as a picture";
  const said = document.createElement("span");
  said.setAttribute("role", "status");
  button.addEventListener("click", async () => {
    try {
      said.textContent = await save(el.closest(".lab"), model);
    } catch (error) {
      said.textContent = `This page cannot make a picture (${error}). Save JSON, or install the ` +
        "Python package kaleido and call play.save(\"playground.png\").";
    }
  });
  el.append(button, said);
}

export default { render };
