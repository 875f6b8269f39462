"use strict";
// Values under the pointer: the nearest recorded point of each curve, in the legend. Without it the curves
// still show, and the legend has the last values.
(() => {
  const SVG = "http://www.w3.org/2000/svg";

  const shown = (value) => {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e15) return value.toPrecision(4);
    if (size >= 10000) return Math.round(value).toLocaleString("en-US");
    return size >= 0.1 ? value.toFixed(4) : String(Number(value.toPrecision(4)));
  };
  const where = (x, label) => {
    if (label === "seconds") {
      return x.toLocaleString("en-US", { minimumFractionDigits: 1, maximumFractionDigits: 1 }) + " s";
    }
    const whole = Math.round(x).toLocaleString("en-US");
    return label === "step" ? "step " + whole : whole + " " + label;
  };

  // The index of the value nearest to x in an increasing list.
  const nearest = (list, x) => {
    let low = 0;
    let high = list.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (list[middle] <= x) low = middle;
      else high = middle;
    }
    return x - list[low] <= list[high] - x ? low : high;
  };

  const element = (name, attributes, parent) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return parent.appendChild(made);
  };

  for (const figure of document.querySelectorAll("figure")) {
    const source = figure.querySelector("script.points");
    if (!source) continue;
    const data = JSON.parse(source.textContent);
    const plot = figure.querySelector(".plot");
    const svg = plot.querySelector("svg");
    const entries = [...figure.querySelectorAll(".legend li")];
    const values = entries.map((entry) => entry.querySelector(".value"));
    const places = entries.map((entry) => entry.querySelector(".at"));
    const last = values.map((value, i) => [value.textContent, places[i].textContent]);
    const swatches = entries.map((entry) => entry.querySelector(".line").getAttribute("class"));
    const across = (x) => (100 * (x - data.x[0])) / (data.x[1] - data.x[0]);
    const down = (y) => (100 * (data.y[1] - y)) / (data.y[1] - data.y[0]);
    let here = null;
    let at = null;

    const clear = () => {
      if (here) here.remove();
      here = at = null;
      last.forEach(([value, place], i) => {
        values[i].textContent = value;
        places[i].textContent = place;
      });
    };
    const show = (x) => {
      const found = data.series.map((one) => nearest(one.x, x));
      const xs = found.map((i, number) => data.series[number].x[i]);
      at = xs.reduce((best, some) => (Math.abs(some - x) < Math.abs(best - x) ? some : best));
      if (here) here.remove();
      here = element("g", { class: "here", "aria-hidden": "true" }, svg);
      element("line", { class: "guide", x1: across(at) + "%", x2: across(at) + "%", y1: "0", y2: "100%" }, here);
      data.series.forEach((one, number) => {
        const i = nearest(one.x, at);
        values[number].textContent = shown(one.y[i]);
        places[number].textContent = where(one.x[i], data.label);
        if (one.y[i] <= data.y[1] && one.y[i] >= data.y[0]) {
          const color = swatches[number].replace("line", "").replace("dashed", "");
          element("circle", { class: color.trim(), cx: across(one.x[i]) + "%", cy: down(one.y[i]) + "%", r: 4 }, here);
        }
      });
    };
    const follow = (event) => {
      const box = plot.getBoundingClientRect();
      const part = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      show(data.x[0] + part * (data.x[1] - data.x[0]));
    };

    plot.addEventListener("pointermove", follow);
    plot.addEventListener("pointerdown", follow);
    plot.addEventListener("pointerleave", clear);
    // With the keyboard: from point to point of the curve that has most of them.
    const most = data.series.reduce((best, one) => (one.x.length > best.x.length ? one : best));
    plot.tabIndex = 0;
    plot.setAttribute("aria-label", "Arrow keys move along the curves");
    plot.setAttribute("role", "group");
    plot.addEventListener("blur", clear);
    plot.addEventListener("keydown", (event) => {
      const ends = { Home: 0, End: most.x.length - 1 };
      const ways = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 };
      if (event.key === "Escape") return clear();
      if (!(event.key in ends) && !(event.key in ways)) return undefined;
      event.preventDefault();
      const now = at === null ? most.x.length : nearest(most.x, at);
      const to = event.key in ends ? ends[event.key] : now + ways[event.key];
      return show(most.x[Math.min(most.x.length - 1, Math.max(0, to))]);
    });
    figure.querySelector(".legend").setAttribute("aria-live", "polite");
  }

  // Pages of several runs: one axis at a time.
  for (const choice of document.querySelectorAll("fieldset.switch")) {
    const choose = () => {
      const chosen = choice.querySelector("input:checked").value;
      for (const group of document.querySelectorAll("[data-axis]")) group.hidden = group.dataset.axis !== chosen;
    };
    choice.hidden = false;
    choice.addEventListener("change", choose);
    choose();
  }
})();
