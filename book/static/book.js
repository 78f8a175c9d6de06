// Draws the figures of a page, and moves them: those near the reader's eyes first, the others when
// the page has nothing else to do. Plotly's script stands in the page's head (conf.py).
"use strict";

(function () {
  const { fit, tidy, longestLine } = globalThis.minserveFit;
  const script = document.getElementById("plotly");
  const config = { displaylogo: false, responsive: true, displayModeBar: false };
  let loading = null;

  // The page's `load` comes after that of all its scripts, so it knows whether this one failed.
  function plotly() {
    loading ??= new Promise((done, failed) => {
      const last = () =>
        window.Plotly ? done(window.Plotly) : failed(new Error(`${script.src} did not load`));
      if (window.Plotly || document.readyState === "complete") last();
      script.addEventListener("load", last);
      window.addEventListener("load", last);
    });
    return loading;
  }

  // An empty frame is the one before it once more.
  function frameAt(frames, place) {
    while (place > 0 && Object.keys(frames[place]).length === 0) place -= 1;
    return frames[place] || {};
  }

  // The plot as it stands in a frame: traces changed or replaced, parts of the layout replaced.
  function stateAt(plot, frame) {
    let data = plot.data;
    if (frame.data && frame.traces) {
      data = data.map((trace, n) => {
        const at = frame.traces.indexOf(n);
        return at < 0 ? trace : { ...trace, ...frame.data[at] };
      });
    } else if (frame.data) {
      data = frame.data;
    }
    return { data, layout: { ...plot.layout, ...frame.layout } };
  }

  // Frames that only move a cursor need no new plot.
  const movesShapesOnly = (frame) =>
    !frame.data && Object.keys(frame.layout || {}).every((part) => part === "shapes");

  class Figure {
    constructor(element) {
      this.element = element;
      this.place = element.querySelector(".book-plot");
      const { plot, motion } = JSON.parse(element.querySelector("script").textContent);
      this.plot = plot;
      this.motion = motion;
      this.controls = element.querySelector(".book-controls");
      this.timer = null;
      this.drawn = null;
      this.shown = false;
      this.heading = element.querySelector(".book-title");
      const layouts = [plot.layout, ...motion.frames.map((frame) => frame.layout || {})];
      const notes = layouts.flatMap((layout) => layout.annotations || []);
      this.widest = Math.max(1, ...notes.map((note) => longestLine(note.text)));
      if (this.controls) this.wire();
    }

    draw() {
      this.drawn ??= plotly()
        .then(() => this.show())
        .catch((error) => this.fail(error));
      return this.drawn;
    }

    fail(error) {
      console.error(error);
      this.place.classList.add("book-undrawn");
      this.place.textContent = "This figure could not be drawn. Its numbers are listed below.";
      if (this.controls) this.controls.hidden = true;
    }

    show() {
      const at = this.slider ? Number(this.slider.value) : 0;
      const frame = frameAt(this.motion.frames, at);
      const { data, layout } = stateAt(this.plot, frame);
      this.heading.innerHTML = layout.title?.text || "";
      if (this.shown && movesShapesOnly(frame)) {
        return window.Plotly.relayout(this.place, frame.layout || {});
      }
      const first = !this.shown;
      this.shown = true;
      // A copy: plotly keeps and changes what it is given.
      const [mine, fitted] = [structuredClone(data), structuredClone(layout)];
      fit(mine, fitted, this.place.clientWidth, this.widest);
      return window.Plotly.react(this.place, mine, fitted, config).then(() => {
        if (first) this.place.on("plotly_afterplot", () => tidy(this.place));
        tidy(this.place);
      });
    }

    wire() {
      this.button = this.controls.querySelector("button");
      this.slider = this.controls.querySelector("input");
      this.output = this.controls.querySelector("output");
      this.slider.addEventListener("input", () => {
        this.stop();
        this.moved();
      });
      this.button.addEventListener("click", () => (this.timer ? this.stop() : this.play()));
    }

    moved() {
      const label = this.motion.labels[Number(this.slider.value)];
      this.output.textContent = label;
      this.slider.setAttribute("aria-valuetext", label);
      this.draw().then(() => this.show());
    }

    play() {
      const last = Number(this.slider.max);
      if (Number(this.slider.value) >= last) this.slider.value = 0;
      this.moved();
      this.said("Pause", true);
      this.timer = window.setInterval(() => {
        this.slider.value = Number(this.slider.value) + 1;
        this.moved();
        if (Number(this.slider.value) >= last) this.stop();
      }, Math.max(40, this.motion.pace_ms));
    }

    stop() {
      window.clearInterval(this.timer);
      this.timer = null;
      this.said("Play", false);
    }

    said(word, playing) {
      this.button.textContent = word;
      this.button.setAttribute("aria-pressed", String(playing));
    }
  }

  // Figures in sight first, then the others one by one, so that printing finds all of them.
  function begin() {
    const figures = [...document.querySelectorAll(".book-figure")].map((each) => new Figure(each));
    const near = new IntersectionObserver(
      (entries) => {
        for (const entry of entries) {
          if (entry.isIntersecting) figures.find((each) => each.element === entry.target).draw();
        }
      },
      { rootMargin: "400px" },
    );
    figures.forEach((each) => near.observe(each.element));
    const idle = window.requestIdleCallback || ((call) => window.setTimeout(call, 200));
    const drawRest = (rest) => {
      if (!rest.length) return document.documentElement.setAttribute("data-book", "drawn");
      rest[0].draw().then(() => idle(() => drawRest(rest.slice(1))));
    };
    window.addEventListener("load", () => idle(() => drawRest(figures)));
  }

  // On paper nothing can be unfolded.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((each) => (each.open = true));
  });
  window.addEventListener("afterprint", () => opened.forEach((each) => (each.open = false)));

  begin();
})();
