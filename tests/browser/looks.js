// What a careful reader would notice on a page: each look returns sentences, and none is good news.
// Looks at the notebook's outputs as they are drawn now; an output that is off the screen has no
// layout, so each is brought there first.
(() => {
  const CONTRAST = 4.5;
  // The book's pages have other places to look at (test_book.py).
  const PLACES = globalThis.minservePlaces ?? ".jp-Notebook .jp-OutputArea-output";
  const frame = () =>
    new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));

  // A plot follows its page's new width after a while, and only where it is on the screen.
  async function plotsFollow(output) {
    const late = () =>
      [...output.parentElement.querySelectorAll(".js-plotly-plot")].some(
        (plot) => plot.clientWidth && plot.scrollWidth > plot.clientWidth,
      );
    for (let waits = 0; waits < 50 && late(); waits++)
      await new Promise((done) => setTimeout(done, 100));
  }

  async function inEveryOutput(look) {
    const found = [];
    for (const output of document.querySelectorAll(PLACES)) {
      output.scrollIntoView();
      await frame();
      await plotsFollow(output);
      found.push(...look(output));
    }
    return [...new Set(found)];
  }

  const seen = (part) =>
    part.checkVisibility({ opacityProperty: true, visibilityProperty: true }) &&
    part.getBoundingClientRect().width > 0;
  const quoted = (part) => `“${part.textContent.trim().slice(0, 60)}”`;

  // Scrolling and cutting.

  function wider(output) {
    const found = [];
    for (const part of [output, ...output.querySelectorAll("*")]) {
      const over = part.scrollWidth - part.clientWidth;
      if (!part.clientWidth || over <= 0) continue;
      const style = getComputedStyle(part);
      const name = part.className || part.tagName;
      if (["auto", "scroll"].includes(style.overflowX))
        found.push(`${name} scrolls by ${over} pixels: ${quoted(part)}`);
      // ipywidgets cuts long words on its buttons and labels.
      if (style.overflowX === "hidden" && style.textOverflow === "ellipsis" && seen(part))
        found.push(`${name} is cut by ${over} pixels: ${quoted(part)}`);
    }
    return found;
  }

  // A word or a number that goes on in the next line, though it would fit into one.
  function broken(output) {
    const found = [];
    const texts = document.createTreeWalker(output, NodeFilter.SHOW_TEXT);
    const range = document.createRange();
    while (texts.nextNode()) {
      const text = texts.currentNode;
      range.selectNodeContents(text);
      if (text.parentElement.closest("svg, style") || range.getClientRects().length < 2) continue;
      // Characters between which no line may end.
      for (const word of text.data.matchAll(/[\p{L}\p{N}_.,:]{2,}/gu)) {
        range.setStart(text, word.index);
        range.setEnd(text, word.index + word[0].length);
        const parts = [...range.getClientRects()].filter((part) => part.width > 0);
        const width = parts.reduce((sum, part) => sum + part.width, 0);
        if (parts.length > 1 && width < 0.9 * output.clientWidth)
          found.push(`“${word[0]}” is broken over ${parts.length} lines: ${quoted(text)}`);
      }
    }
    return found;
  }

  // Contrast, as WCAG 2 defines it.

  function rgba(text) {
    const numbers = (text.match(/[\d.]+(e-?\d+)?/g) ?? []).map(Number);
    if (text === "transparent" || numbers.length < 3) return [0, 0, 0, 0];
    const [r, g, b, a = 1] = text.startsWith("color(srgb")
      ? [...numbers.slice(0, 3).map((n) => 255 * n), ...numbers.slice(3)]
      : numbers;
    return [r, g, b, a];
  }

  const over = (top, below) =>
    [0, 1, 2].map((n) => top[n] * top[3] + below[n] * (1 - top[3])).concat(1);

  function luminance(colour) {
    const [r, g, b] = colour
      .slice(0, 3)
      .map((n) => n / 255)
      .map((n) => (n <= 0.04045 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }

  function contrast(one, other) {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  }

  function opacity(part) {
    let found = 1;
    for (let each = part; each; each = each.parentElement)
      found *= Number(getComputedStyle(each).opacity);
    return found;
  }

  // The page behind an element: backgrounds up to the first that lets nothing through.
  function page(part) {
    const layers = [];
    for (let each = part; each; each = each.parentElement) {
      const colour = rgba(getComputedStyle(each).backgroundColor);
      if (colour[3] > 0) layers.push(colour);
      if (colour[3] === 1) break;
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  }

  function fill(shape) {
    const style = getComputedStyle(shape);
    const drawn = style.fill.startsWith("url")
      ? // A pattern: its ground, drawn first, is what most of a letter stands on.
        getComputedStyle(
          document.getElementById(style.fill.match(/#([^"')]+)/)[1])?.firstElementChild ?? shape,
        )
      : style;
    if (drawn.fill === "none" || drawn.fill.startsWith("url")) return [0, 0, 0, 0];
    const colour = rgba(drawn.fill);
    colour[3] *= Number(drawn.fillOpacity) * Number(style.opacity);
    return colour;
  }

  function filledShapes(plot) {
    return [...plot.querySelectorAll(".main-svg path, .main-svg rect, .main-svg circle")]
      .filter((shape) => !shape.closest("defs, clipPath, pattern, .draglayer"))
      .map((shape) => ({ shape, colour: fill(shape), box: shape.getBoundingClientRect() }))
      .filter(({ colour, box }) => colour[3] > 0 && box.width * box.height > 0);
  }

  const holds = (box, x, y) => box.left <= x && x <= box.right && box.top <= y && y <= box.bottom;

  function under(text, shapes, x, y, ground) {
    let found = ground;
    for (const { shape, colour, box } of shapes) {
      const before = shape.compareDocumentPosition(text) & Node.DOCUMENT_POSITION_FOLLOWING;
      if (!before || !holds(box, x, y)) continue;
      const point = new DOMPoint(x, y).matrixTransform(shape.getScreenCTM().inverse());
      if (shape.isPointInFill(point)) found = over(colour, found);
    }
    return found;
  }

  const idle = (part) => {
    const widget = part.closest(".jupyter-widgets:not(.widget-box)");
    return part.closest(":disabled") || widget?.querySelector(":disabled, [disabled]");
  };

  function pale(output) {
    const found = [];
    const tell = (part, ink, ground, colour) => {
      const ratio = contrast(ink, ground);
      if (ratio < CONTRAST)
        found.push(`${ratio.toFixed(2)} to 1: ${colour} on ${ground.slice(0, 3).map(Math.round)}: `
          + quoted(part));
    };
    const walk = document.createTreeWalker(output, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
      const part = walk.currentNode.parentElement;
      if (!walk.currentNode.data.trim() || part.closest("svg, style, script")) continue;
      if (!seen(part) || idle(part)) continue;
      const style = getComputedStyle(part);
      const [ground, ink] = [page(part), rgba(style.color)];
      ink[3] *= opacity(part);
      tell(part, over(ink, ground), ground, style.color);
    }
    for (const plot of output.querySelectorAll(".js-plotly-plot")) {
      const [shapes, paper] = [filledShapes(plot), page(plot)];
      for (const text of plot.querySelectorAll(".main-svg text")) {
        const box = text.getBoundingClientRect();
        if (!text.textContent.trim() || !seen(text) || text.closest(".hoverlayer")) continue;
        const style = getComputedStyle(text.querySelector("tspan") ?? text);
        const ink = rgba(style.fill);
        ink[3] *= Number(style.fillOpacity) * opacity(text);
        const y = box.top + box.height / 2;
        for (const share of [0.1, 0.5, 0.9]) {
          const ground = under(text, shapes, box.left + share * box.width, y, paper);
          tell(text, over(ink, ground), ground, style.fill);
        }
      }
    }
    return found;
  }

  // Labels of plots.

  const LABELS = [
    ".gtitle", ".xtitle", ".ytitle", ".xtick text", ".ytick text", ".legendtext",
    ".annotation-text", ".textpoint text", ".bartext",
  ].join(", ");

  const turned = (text) => /rotate\((?!0[,)])/.test(text.getAttribute("transform") ?? "");

  function crowded(output) {
    const found = [];
    for (const plot of output.querySelectorAll(".js-plotly-plot")) {
      if (!seen(plot)) continue;
      const edge = plot.getBoundingClientRect();
      const labels = [...plot.querySelectorAll(LABELS)]
        .filter((text) => text.textContent.trim() && seen(text))
        .map((text) => ({ text, box: text.getBoundingClientRect() }));
      const title = quoted(plot.querySelector(".gtitle") ?? plot);
      for (const { text, box } of labels) {
        const out = Math.max(edge.left - box.left, box.right - edge.right, edge.top - box.top,
          box.bottom - edge.bottom);
        if (out > 1) found.push(`${title}: ${quoted(text)} leaves the plot by ${out.toFixed()}`);
      }
      const overlap = (one, other) =>
        Math.min(one.right, other.right) - Math.max(one.left, other.left) > 2 &&
        Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top) > 4;
      labels.forEach((one, place) => {
        for (const other of labels.slice(place + 1)) {
          // The box around a turned label is larger than the label.
          if (turned(one.text) && turned(other.text)) continue;
          if (overlap(one.box, other.box))
            found.push(`${title}: ${quoted(one.text)} and ${quoted(other.text)} overlap`);
        }
      });
      const dots = [...plot.querySelectorAll(".scatterlayer .points path.point")]
        .filter(seen)
        .map((dot) => dot.getBoundingClientRect());
      for (const { text, box } of labels) {
        const hit = dots.some((dot) =>
          holds(box, (dot.left + dot.right) / 2, (dot.top + dot.bottom) / 2));
        if (hit) found.push(`${title}: ${quoted(text)} lies over a dot`);
      }
    }
    return found;
  }

  // What the reader can press.

  const CONTROLS =
    "button, input, select, textarea, summary, a[href], [role=slider], [role=button], [tabindex]";

  function controls(output) {
    const found = [];
    for (const part of output.querySelectorAll(CONTROLS)) {
      if (!seen(part) || part.matches(":disabled, [disabled]") || part.closest("[disabled]"))
        continue;
      if (part.closest(".js-plotly-plot") || part.tabIndex < 0) continue;
      found.push(part);
    }
    return found;
  }

  // Where Tab should stop: each control, and radio buttons as a group. The first gets the focus.
  function stops(output) {
    const groups = new Map();
    for (const part of controls(output)) {
      const key = part.type === "radio" ? part.closest(".widget-radio-box") ?? part.name : part;
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(part);
    }
    const found = [...groups.values()];
    found.forEach((group, place) => group.forEach((part) => (part.dataset.stop = place)));
    for (const part of document.querySelectorAll("[data-stop]"))
      if (!output.contains(part)) delete part.dataset.stop;
    found[0]?.[0].focus();
    return found.map(([part]) => `${part.tagName} ${part.className}: ${quoted(part)}`);
  }

  // Clicked with a mouse only: something that looks pressable and cannot have the focus.
  function unreachable(output) {
    return [...output.querySelectorAll("*")]
      .filter((part) => seen(part) && !part.closest(".js-plotly-plot"))
      .filter((part) => getComputedStyle(part).cursor === "pointer")
      .filter((part) => !part.closest("button, label, select, summary, a, input, [tabindex='0'], "
        + ":disabled, [disabled]"))
      .filter((part) => !part.querySelector("button, input, select, [tabindex='0']"))
      .map((part) => `only a mouse reaches ${part.className || part.tagName}: ${quoted(part)}`);
  }

  function unfold() {
    for (const fold of document.querySelectorAll(".jp-Notebook .jp-OutputArea-output details"))
      fold.open = true;
  }

  globalThis.minserveLooks = {
    wider: () => inEveryOutput(wider),
    broken: () => inEveryOutput(broken),
    pale: () => inEveryOutput(pale),
    crowded: () => inEveryOutput(crowded),
    unreachable: () => inEveryOutput(unreachable),
    stops, unfold,
  };
})();
