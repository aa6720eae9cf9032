"use strict";
// One plot: axes, lines, cursor. Knows nothing of runs or of the page around it.

function html(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// A power of ten times 1, 2 or 5: the step between about `count` ticks.
function tickStep(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw));
  const times = raw / power;
  return power * (times <= 1 ? 1 : times <= 2 ? 2 : times <= 5 ? 5 : 10);
}

function linearTicks(low, high, count, integers) {
  let step = tickStep(low, high, count);
  if (integers) step = Math.max(1, step);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; ++i) ticks.push(i * step);
  return ticks;
}

function logTicks(low, high, count) {
  const decades = Math.log10(high / low);
  const ticks = [];
  if (decades < 0.7) return linearTicks(low, high, count, false);
  const skip = Math.max(1, Math.ceil(decades / count));
  const times = decades < count / 2.5 ? [1, 2, 5] : [1];
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); ++p)
    for (const t of times)
      if (p % skip === 0 && t * 10 ** p >= low * 0.999 && t * 10 ** p <= high * 1.001) ticks.push(t * 10 ** p);
  return ticks;
}

// Short, for axes: enough digits to tell ticks that are `step` apart, in the unit of the axis's largest.
function tickText(value, step, size) {
  if (value === 0) return "0";
  if (size >= 1e15 || size < 1e-2) return value.toExponential(Math.max(0, decimals(Math.abs(value), step))).replace(/\.?0*e\+?/, "e");
  for (const [unit, name] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (size >= unit) return trim((value / unit).toFixed(digitsBelow(step / unit))) + name;
  return trim(value.toFixed(digitsBelow(step)));
}
function digitsBelow(step) {
  return Math.min(12, Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
}
function decimals(size, step) {
  return Math.min(12, Math.floor(Math.log10(size) + 1e-9) - Math.floor(Math.log10(step) + 1e-9));
}
function trim(text) {
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

// For the cursor's readout.
function valueText(value) {
  if (value === null) return "not finite";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e7 || size < 1e-3)) return value.toExponential(3).replace("e+", "e");
  return trim(value.toPrecision(size >= 1e5 ? 7 : 5));
}

// Index of the point nearest to x; xs ascend.
function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle;
    else high = middle;
  }
  return x - xs[low] <= xs[high] - x ? low : high;
}

// lines: [{id, label, color, x, y, dash, dots}], y null where it is not finite.
// kind: "line"; "stack": the lines of a plot are stacked areas over the same x; "stem": an upright line a point.
class Plot {
  constructor({ title, lines, kind = "line", show = valueText, log = false, zero = false }) {
    Object.assign(this, { title, lines, kind, show, log, zero });
    this.height = 260;
    this.node = svg("svg", { class: "plot", height: this.height, role: "img", "aria-label": title });
  }

  // Where a line is drawn: for a stack, on those below it.
  levels(visible) {
    if (this.kind !== "stack") return visible.map((line) => ({ line, low: null, high: line.y }));
    const levels = [];
    let low = visible.length ? visible[0].x.map(() => 0) : [];
    for (const line of visible) {
      const base = low;
      const high = line.y.map((v, i) => (v === null || base[i] === null ? null : base[i] + v));
      levels.push({ line, low: base, high });
      low = high;
    }
    return levels;
  }

  range(levels, x0, x1) {
    let low = Infinity, high = -Infinity;
    for (const { line, high: ys } of levels)
      for (let i = 0; i < ys.length; ++i) {
        if (ys[i] === null || line.x[i] < x0 || line.x[i] > x1 || (this.log && ys[i] <= 0)) continue;
        low = Math.min(low, ys[i]);
        high = Math.max(high, ys[i]);
      }
    if (low > high) return this.log ? [0.1, 1] : [0, 1];
    if (this.log) return low === high ? [low / 2, high * 2] : [low / 1.1, high * 1.1];
    if (this.zero || this.kind !== "line") low = Math.min(0, low);
    const pad = high > low ? (high - low) * 0.06 : Math.abs(high) * 0.1 || 1;
    return [low === 0 ? 0 : low - pad, high + pad];
  }

  // The upright axis for a span of steps; returns the room that its labels need, so that all plots of a page can have
  // the same.
  measure([x0, x1], hidden) {
    const levels = this.levels(this.lines.filter((line) => !hidden(line)));
    const [y0, y1] = this.range(levels, x0, x1);
    const ticks = this.log ? logTicks(y0, y1, 6) : linearTicks(y0, y1, 6, false);
    const step = tickStep(y0, y1, 6), largest = Math.max(...ticks.map(Math.abs));
    const labels = ticks.map((v) => tickText(v, this.log ? v : step, this.log ? Math.abs(v) : largest));
    this.axis = { x0, x1, y0, y1, levels, ticks, labels };
    return 14 + 7 * Math.max(2, ...labels.map((t) => t.length));
  }

  // After measure(); `left` is where the axis stands.
  draw(width, left) {
    const { x0, x1, y0, y1, levels, ticks, labels } = this.axis;
    const top = 8, bottom = this.height - 38, right = width - 14;
    const px = (x) => left + ((x - x0) / (x1 - x0 || 1)) * (right - left);
    const scaled = this.log ? Math.log : (v) => v;
    const py = (y) => bottom - ((scaled(y) - scaled(y0)) / (scaled(y1) - scaled(y0))) * (bottom - top);
    this.frame = { left, right, top, bottom, x0, x1, px, py, levels };

    this.node.replaceChildren();
    this.node.setAttribute("width", width);
    const clip = "clip-" + this.title.replace(/\W+/g, "-");
    this.node.append(svg("clipPath", { id: clip },
      svg("rect", { x: left - 1, y: top - 4, width: right - left + 2, height: bottom - top + 8 })));
    const axes = svg("g", { class: "axes" });
    ticks.forEach((v, i) => {
      const y = py(v);
      if (y < top - 1 || y > bottom + 1) return;
      axes.append(svg("line", { x1: left, x2: right, y1: y, y2: y }));
      axes.append(svg("text", { x: left - 7, y: y + 4, "text-anchor": "end" }, labels[i]));
    });
    const stepTicks = linearTicks(x0, x1, Math.floor((right - left) / 85), true);
    const stepStep = stepTicks.length > 1 ? stepTicks[1] - stepTicks[0] : 1;
    for (const v of stepTicks) {
      axes.append(svg("line", { class: "tick", x1: px(v), x2: px(v), y1: bottom, y2: bottom + 4 }));
      axes.append(svg("text", { x: px(v), y: bottom + 17, "text-anchor": "middle" }, tickText(v, stepStep, Math.max(Math.abs(x0), Math.abs(x1)))));
    }
    axes.append(svg("line", { class: "base", x1: left, x2: right, y1: bottom, y2: bottom }));
    axes.append(svg("text", { x: right, y: bottom + 33, "text-anchor": "end", class: "quiet" }, "step"));
    const drawn = svg("g", { "clip-path": `url(#${clip})` });
    for (const level of levels) this.drawLine(drawn, level);
    this.marks = svg("g", { class: "marks" });
    this.node.append(axes, drawn, this.marks);
  }

  drawLine(group, { line, low, high }) {
    const { px, py, bottom, top } = this.frame;
    const at = (x, y) => `${px(x).toFixed(1)} ${py(y).toFixed(1)}`;
    const usable = (y) => y !== null && !(this.log && y <= 0);
    let d = "", open = false, count = 0;
    const gaps = [];
    for (let i = 0; i < high.length; ++i) {
      if (!usable(high[i])) {
        if (high[i] === null) gaps.push(line.x[i]);
        open = false;
        continue;
      }
      ++count;
      if (this.kind === "stem") d += `M${at(line.x[i], high[i])}V${bottom}`;
      // A point between two gaps is a dot: a line of no length with round ends.
      else d += (open ? "L" : "M") + at(line.x[i], high[i]) + (open || usable(high[i + 1] ?? null) ? "" : "h0");
      open = true;
    }
    if (this.kind === "stack") {
      for (let i = high.length - 1; i >= 0; --i) if (usable(high[i])) d += "L" + at(line.x[i], low[i]);
      group.append(svg("path", { class: "area", d: d ? d + "Z" : "", style: `fill:${line.color}`, "data-line": line.id,
        "data-points": count, "data-of": line.of }));
    } else {
      group.append(svg("path", { class: this.kind, d, style: `stroke:${line.color}`, "stroke-dasharray": line.dash || "none",
        "data-line": line.id, "data-points": count, "data-of": line.of }));
    }
    if (line.dots && count <= 200)
      high.forEach((y, i) => {
        if (usable(y)) group.append(svg("circle", { cx: px(line.x[i]), cy: py(y), r: 3, style: `fill:${line.color}` }));
      });
    for (const x of gaps)
      group.append(svg("path", { class: "gap", d: `M${px(x).toFixed(1)} ${top}v8` }));
  }

  stepAt(clientX) {
    const f = this.frame, x = clientX - this.node.getBoundingClientRect().left;
    const step = f.x0 + ((x - f.left) / (f.right - f.left)) * (f.x1 - f.x0);
    return Math.min(f.x1, Math.max(f.x0, step));
  }

  // An upright line at a step and a dot on every line; null removes them. Returns what the lines are there.
  cursor(step) {
    this.marks.replaceChildren();
    if (step === null) return [];
    const { px, py, top, bottom, levels } = this.frame;
    this.marks.append(svg("line", { class: "cursor", x1: px(step), x2: px(step), y1: top, y2: bottom }));
    const found = [];
    for (const { line, high } of levels) {
      if (!line.x.length) continue;
      const i = nearest(line.x, step);
      found.push({ line, step: line.x[i], text: this.show(line.y[i]) });
      if (high[i] !== null && !(this.log && high[i] <= 0))
        this.marks.append(svg("circle", { cx: px(line.x[i]), cy: py(high[i]), r: 3.5, style: `fill:${line.color}` }));
    }
    return found;
  }

  // The span of steps that is being dragged over.
  band(a, b) {
    const { px, top, bottom } = this.frame;
    this.marks.append(svg("rect", { class: "band", x: Math.min(px(a), px(b)), width: Math.abs(px(a) - px(b)), y: top,
      height: bottom - top }));
  }
}
