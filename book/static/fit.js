// Makes a plot fit the width of its page. On a narrow one notes and titles are wrapped, the words
// beside a plot give way to it (the legend and the sentences around it say the same), and a text
// that would still be cut off moves inside. Knows nothing about frames.
"use strict";

globalThis.minserveFit = (function () {
  const NARROW_PX = 560;
  const SMALL_PX = 9;
  const LABEL_PX = 10;
  const TITLE_PX = 28; // what a plot keeps free above itself for a title
  const LINE_PX = 16;
  const LETTER = 0.6; // mean width of a letter, as a share of the font's size
  const INK = "rgb(119, 119, 119)"; // theme.INK: lab.css puts the page's text colour in its place

  // The title stands above the plot, where it can wrap. `widest` is the longest line of its notes,
  // in letters, over all frames: so their size does not change while they are being written.
  function fit(data, layout, width, widest) {
    if (layout.title?.text && width >= NARROW_PX) {
      layout.margin.t -= TITLE_PX;
      layout.height -= TITLE_PX;
    }
    delete layout.title;
    layout.autosize = true;
    if (width < NARROW_PX) narrow(data, layout, width, widest);
  }

  function narrow(data, layout, width, widest) {
    const margin = { ...layout.template?.layout?.margin, ...layout.margin };
    if (margin.r > 60) {
      margin.r = 16;
      layout.annotations = (layout.annotations || []).filter(
        (note) => !(String(note.xref).includes("paper") && note.x >= 1),
      );
    }
    layout.margin = margin;
    for (const trace of data) {
      if (trace.mode === "text") trace.textfont = { ...trace.textfont, size: SMALL_PX };
      // A number is shown upright and in its size, or not at all.
      if (trace.type === "bar" && trace.orientation !== "h") {
        Object.assign(trace, { textangle: 0, constraintext: "none" });
      }
    }
    const inner = width - margin.l - margin.r;
    for (const trace of data) makeRoomForLabels(trace, layout, inner);
    const [above, below] = [wrapNotes(layout, inner, widest), wrapTitles(layout, inner)];
    const plot = layout.height - margin.t - margin.b;
    margin.t += above * LINE_PX;
    margin.b += below * LINE_PX;
    if (layout.height) layout.height += (above + below) * LINE_PX;
    if (above && layout.legend?.y >= 1) layout.legend.y += (above * LINE_PX) / plot;
  }

  // The words beside a bar stand beside it: all bars of its plot become shorter.
  function makeRoomForLabels(trace, layout, inner) {
    if (trace.type !== "bar" || trace.orientation !== "h" || trace.textposition !== "outside") return;
    const axis = layout[`xaxis${(trace.xaxis || "x").slice(1)}`];
    if (!axis || !Array.isArray(trace.x) || !Array.isArray(trace.text)) return;
    trace.textfont = { ...trace.textfont, size: LABEL_PX };
    const ends = trace.x.map((end, n) => {
      const words = String(trace.text[n] || "").length * LETTER * LABEL_PX;
      return (end * inner) / Math.max(inner - words, inner / 10);
    });
    axis.range = [0, Math.max(axis.range?.[1] || 0, ...ends)];
  }

  // A note may be as wide as its plot, up to the next note at its height. Returns by how many lines
  // those over the uppermost plots grew.
  function wrapNotes(layout, inner, widest) {
    const notes = (layout.annotations || []).filter(
      (note) => note.xref === "paper" && note.yref === "paper",
    );
    let more = 0;
    for (const note of notes) {
      const others = notes.filter((each) => each.y === note.y && each.x > note.x);
      const room = (Math.min(1, ...others.map((each) => each.x)) - note.x) * inner - 4;
      const size = note.font?.size || 12;
      if (note.text.includes("<")) {
        note.font = { ...note.font, size: Math.min(size, room / (LETTER * widest)) };
      } else {
        note.text = wrapped(note.text, room / (LETTER * size));
        note.align = "left";
        if (note.y >= 1) more = Math.max(more, linesOf(note.text).length - 1);
      }
    }
    return more;
  }

  function wrapTitles(layout, inner) {
    let more = 0;
    for (const [name, axis] of Object.entries(layout)) {
      if (!name.startsWith("xaxis") || !axis.title?.text) continue;
      const [low, high] = axis.domain || [0, 1];
      const letters = ((high - low) * inner) / (LETTER * (axis.title.font?.size || 13));
      axis.title.text = wrapped(axis.title.text, letters);
      more = Math.max(more, linesOf(axis.title.text).length - 1);
    }
    return more;
  }

  const linesOf = (text) => text.split("<br>");
  const longestLine = (text) =>
    Math.max(0, ...linesOf(text).map((line) => line.replace(/<[^>]*>/g, "").length));

  function wrapped(text, letters) {
    const lines = [];
    for (const word of text.split(" ")) {
      const last = lines.at(-1);
      if (last !== undefined && last.length + 1 + word.length <= letters) {
        lines[lines.length - 1] = `${last} ${word}`;
      } else lines.push(word);
    }
    return lines.join("<br>");
  }

  // After plotly has drawn: a number wider than its bar would stand on its neighbours, so it is
  // hidden; hovering and the table still tell it. A text over the plot's edge moves inside.
  function tidy(place) {
    for (const text of place.querySelectorAll(".bartext-inside")) {
      const bar = text.parentElement.querySelector("path");
      hideIf(text, bar && wider(text, bar.getBoundingClientRect()));
    }
    const bars = [...place.querySelectorAll(".barlayer path")].map((each) =>
      each.getBoundingClientRect(),
    );
    for (const text of place.querySelectorAll(".textpoint text")) {
      if (text.style.fill === INK) continue; // its colour is not meant for a bar
      const box = text.getBoundingClientRect();
      const [x, y] = [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
      const under = bars.filter(
        (bar) => bar.left <= x && x <= bar.right && bar.top <= y && y <= bar.bottom,
      );
      hideIf(text, under.some((bar) => wider(text, bar)));
    }
    const edge = place.getBoundingClientRect();
    for (const text of place.querySelectorAll(".bartext-outside, .infolayer text")) {
      moveInside(text, edge);
    }
  }

  const wider = (text, bar) => text.getBoundingClientRect().width > bar.width + 1;
  const hideIf = (text, hidden) => (text.style.visibility = hidden ? "hidden" : "");

  function moveInside(text, edge) {
    text.style.translate = "";
    text.classList.remove("book-moved");
    const box = text.getBoundingClientRect();
    const over = Math.min(box.right - edge.right, box.left - edge.left);
    if (!box.width || over <= 0) return;
    text.style.translate = `${-over}px`;
    text.classList.add("book-moved");
  }

  return { fit, tidy, longestLine };
})();
