// The page: its plots from the runs' data, legend, cursor, zoom, and what is kept when it loads itself again.

const data = JSON.parse(document.getElementById("data").textContent);
const many = data.runs.length > 1;
const color = (i) => (i < 8 ? `var(--c${i})` : `hsl(${(i * 137) % 360} 60% 50%)`);
const storageKey = "dstrain report " + location.pathname;
const state = Object.assign({ zoom: null, hidden: [], log: [], scroll: 0 }, stored());
const plots = [];
const readout = html("div", { id: "readout" });

function stored() {
  try {
    return JSON.parse(sessionStorage.getItem(storageKey)) || {};
  } catch {
    return {};
  }
}
function store() {
  state.scroll = window.scrollY;
  try {
    sessionStorage.setItem(storageKey, JSON.stringify(state));
  } catch { /* a page without storage starts afresh */ }
}

const hiddenRun = (run) => many && state.hidden.includes(data.runs[run].path);
const toggled = (list, item) => (list.includes(item) ? list.filter((x) => x !== item) : [...list, item]);

// The lines of some keys, run by run. One run: a colour a key; more: a colour a run, and dashes tell keys apart.
function linesOf(keys, { scale = 1, positive = false } = {}) {
  const lines = [];
  data.runs.forEach((run, r) =>
    keys.forEach(({ key, label, dots }, k) => {
      const s = run.series[key];
      if (!s) return;
      let points = s.x.map((x, i) => [x, s.y[i]]);
      if (positive) points = points.filter(([, y]) => y === null || y > 0);
      lines.push({ id: `${r}/${key}`, run: r, label: many ? `${run.name} ${label}` : label, color: color(many ? r : k),
        dash: many && k > 0 ? "5 4" : "", dots, of: s.of, x: points.map((p) => p[0]),
        y: points.map((p) => (p[1] === null ? null : p[1] * scale)) });
    }));
  return lines;
}

function bytesText(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let u = 0;
  while (n >= 1024 && u < 4) n /= 1024, ++u;
  return (u ? n.toFixed(1) : n) + " " + units[u];
}

function swatch(c) {
  return html("span", { class: "swatch", style: `background:${c}` });
}

// keys: [[label, colour, dashed]] shown beside the title.
function addPlot(grid, options, keys = []) {
  if (!options.lines.length) return;
  const plot = new Plot({ ...options, log: state.log.includes(options.title) });
  const head = html("div", { class: "head" }, html("h3", {}, options.title));
  head.append(html("span", { class: "keys" }, ...keys.map(([label, c, dash]) => {
    const mark = svg("svg", { width: 20, height: 8 });
    mark.append(svg("line", { x1: 0, x2: 20, y1: 4, y2: 4, style: `stroke:${c}`, "stroke-width": options.kind === "stack" ? 8 : 2,
      "stroke-dasharray": dash ? "5 4" : "none" }));
    return html("span", {}, mark, label);
  })));
  if (!options.kind) {
    const button = html("button", { class: "small", "aria-pressed": plot.log, title: "logarithmic axis" }, "log");
    button.onclick = () => {
      plot.log = !plot.log;
      button.setAttribute("aria-pressed", plot.log);
      state.log = toggled(state.log, options.title);
      store();
      drawAll();
    };
    head.append(button);
  }
  const card = html("section", { class: "card" }, head, plot.node);
  grid.append(card);
  plot.card = card;
  plots.push(plot);
  watch(plot);
}

function keyStyles(lines, keys) {
  if (keys.length < 2) return [];
  return keys.filter(({ key }) => lines.some((l) => l.id.endsWith("/" + key)))
    .map(({ label }, k) => [label, many ? "currentColor" : color(k), many && k > 0]);
}

function addLines(grid, title, keys, options = {}) {
  const lines = linesOf(keys, options);
  addPlot(grid, { title, lines, ...options.plot }, keyStyles(lines, keys));
}

function addStepTime(grid) {
  data.runs.forEach((run, r) => {
    const t = run.time;
    if (!t) return;
    const lines = t.names.map((name, i) => ({ id: `${r}/time/${name}`, run: r, label: name, color: color(i), of: t.of, x: t.x, y: t.y[i] }));
    const title = "Step time by part, seconds" + (many ? `: ${run.name}` : "");
    addPlot(grid, { title, lines, kind: "stack" }, t.names.map((name, i) => [name, color(i), false]));
  });
}

function memoryCard(run, r) {
  const card = html("section", { class: "card memory" }, html("h3", {}, many ? `${run.name}: memory of a rank` : "Memory of a rank, as planned"));
  const purposes = [...new Set(run.ranks.flatMap((rank) => rank.memory.map(([purpose]) => purpose)))];
  const bytes = run.ranks.map((rank) => new Map(rank.memory));
  // On a GPU what lies in host memory is another budget.
  const onHost = (purpose) => purpose.endsWith(" (host)");
  const totals = (host) => bytes.map((m) => [...m].filter(([p]) => onHost(p) === host).reduce((sum, [, b]) => sum + b, 0));
  const own = totals(false), largest = Math.max(...own, 1);
  run.ranks.slice(0, 8).forEach((rank, i) => {
    const bar = html("div", { class: "bar", title: rank.label });
    purposes.forEach((p, k) => onHost(p) || bar.append(html("i", { style: `width:${(100 * (bytes[i].get(p) || 0)) / largest}%;background:${color(k)}`, title: p })));
    if (run.ranks.length > 1) card.append(html("div", { class: "note" }, rank.label));
    card.append(bar);
  });
  const head = html("tr", {}, html("th", {}, "purpose"), ...run.ranks.map((rank) => html("th", {}, rank.label)));
  const rows = purposes.map((p, k) => html("tr", {}, html("td", {}, swatch(color(k)), p),
    ...bytes.map((m) => html("td", {}, m.has(p) ? bytesText(m.get(p)) : ""))));
  const total = (name, sums) => rows.push(html("tr", { class: "total" }, html("td", {}, name), ...sums.map((t) => html("td", {}, bytesText(t)))));
  total(purposes.some(onHost) ? "GPU total" : "total", own);
  if (purposes.some(onHost)) total("host total", totals(true));
  card.append(html("table", {}, html("thead", {}, head), html("tbody", {}, ...rows)));
  return card;
}

// A job's lines, each with the section it stands in.
function jobLines(run) {
  let section = "";
  return run.job.replace(/\n$/, "").split("\n").map((line) => {
    if (/^\S/.test(line)) section = line;
    return { line, key: /^\S/.test(line) ? line : section + "\n" + line };
  });
}

function textCards() {
  const texts = html("div", { class: "texts" });
  const jobs = data.runs.map(jobLines), sets = jobs.map((lines) => new Set(lines.map((l) => l.key)));
  data.runs.forEach((run, r) => {
    const title = (what) => html("h3", {}, many ? swatch(color(r)) : "", many ? ` ${run.name}: ${what}` : what);
    const pre = html("pre");
    for (const { line, key } of jobs[r])
      pre.append(sets.every((set) => set.has(key)) ? line : html("span", { class: "differs" }, line), "\n");
    texts.append(html("section", { class: "card" }, title("resolved job"), pre));
    texts.append(html("section", { class: "card" }, title("plan"), html("pre", {}, run.plan)));
  });
  return texts;
}

function extent() {
  let low = Infinity, high = -Infinity;
  for (const plot of plots)
    for (const line of plot.lines) {
      if (hiddenRun(line.run) || !line.x.length) continue;
      low = Math.min(low, line.x[0]);
      high = Math.max(high, line.x[line.x.length - 1]);
    }
  return low < high ? [low, high] : low === high ? [low - 1, low + 1] : [0, 1];
}

function drawAll() {
  const span = state.zoom || extent();
  const left = Math.max(0, ...plots.map((plot) => plot.measure(span, (line) => hiddenRun(line.run))));
  for (const plot of plots) plot.draw(Math.max(260, plot.card.clientWidth - 24), left);
  document.getElementById("reset").hidden = !state.zoom;
}

function showReadout(found, step, x, y) {
  if (!found.length) return hideReadout();
  readout.replaceChildren(html("div", { class: "note" }, `step ${found[0].step}`), html("table", {}, ...found.map(({ line, step: at, text }) =>
    html("tr", {}, html("td", {}, swatch(line.color)), html("td", {}, line.label + (at === found[0].step ? "" : ` (step ${at})`)), html("td", {}, text)))));
  readout.style.display = "block";
  const w = readout.offsetWidth, h = readout.offsetHeight;
  readout.style.left = (x + 16 + w < window.innerWidth ? x + 16 : x - 16 - w) + "px";
  readout.style.top = Math.min(y + 14, window.innerHeight - h - 6) + "px";
}
function hideReadout() {
  readout.style.display = "none";
}

let dragging = null;
function watch(plot) {
  const node = plot.node;
  node.onpointermove = (event) => {
    const step = plot.stepAt(event.clientX);
    for (const other of plots) if (other !== plot) other.cursor(step);
    showReadout(plot.cursor(step), step, event.clientX, event.clientY);
    if (dragging !== null) plot.band(dragging, step);
  };
  node.onpointerleave = () => {
    if (dragging !== null) return;
    for (const other of plots) other.cursor(null);
    hideReadout();
  };
  node.onpointerdown = (event) => {
    if (event.button !== 0) return;
    dragging = plot.stepAt(event.clientX);
    node.setPointerCapture(event.pointerId);
  };
  node.onpointerup = (event) => {
    if (dragging === null) return;
    const a = Math.min(dragging, plot.stepAt(event.clientX)), b = Math.max(dragging, plot.stepAt(event.clientX));
    dragging = null;
    const f = plot.frame;
    if (f.px(b) - f.px(a) < 6) return;
    state.zoom = [a, b];
    store();
    drawAll();
  };
  node.onpointercancel = () => { dragging = null; };
  node.ondblclick = resetZoom;
}
function resetZoom() {
  state.zoom = null;
  store();
  drawAll();
}

function header() {
  const reset = html("button", { id: "reset", hidden: "" }, "show all steps");
  reset.onclick = resetZoom;
  const written = new Date(data.written * 1000).toISOString().replace("T", " ").slice(0, 19);
  const runs = html("div", { class: "runs" }, ...data.runs.map((run, r) => {
    const button = html(many ? "button" : "div", { class: "run", "aria-pressed": !hiddenRun(r), title: many ? "show or hide" : "" },
      swatch(color(many ? r : 0)), html("b", {}, run.name), html("span", {}, run.status), html("span", { class: "note" }, run.path));
    if (many) button.onclick = () => {
      state.hidden = toggled(state.hidden, run.path);
      button.setAttribute("aria-pressed", !hiddenRun(r));
      store();
      drawAll();
    };
    return button;
  }));
  return [html("header", {}, html("h1", {}, many ? `${data.runs.length} runs` : data.runs[0].name), reset,
    html("span", { class: "note" }, `written ${written} UTC` + (data.reload ? `, again every ${data.reload} s` : ""))), runs];
}

function build() {
  const grid = html("div", { class: "grid" }), others = html("div", { class: "grid" });
  document.title = data.runs.map((run) => run.name).join(", ") + " – dstrain";
  document.body.append(...header(), grid, readout);
  const keys = [...new Set(data.runs.flatMap((run) => Object.keys(run.series)))];
  const evals = keys.filter((key) => key.startsWith("eval_loss"));
  addLines(grid, "Loss, nats a token", [{ key: "loss", label: "train" }, { key: "mtp_loss", label: "further tokens" }, ...evals.map((key) =>
    ({ key, label: key === "eval_loss" ? "eval" : "eval " + key.slice(10), dots: true }))]);
  const loads = keys.filter((key) => key.startsWith("expert_load."));
  addLines(grid, "Experts' load, most over mean", loads.length <= 8
    ? loads.map((key) => ({ key, label: "mixture " + key.slice(12) }))
    : [{ key: "expert_load_max", label: "worst of all" }]);
  addLines(grid, "Learning rate", [{ key: "lr", label: "lr" }], { plot: { zero: true } });
  addLines(grid, "Gradient norm, before clipping", [{ key: "grad_norm", label: "norm" }]);
  addLines(grid, "Throughput, tokens a second", [{ key: "tokens_per_second", label: "tokens/s" }], { plot: { zero: true } });
  addLines(grid, "MFU, percent", [{ key: "mfu", label: "MFU" }], { scale: 100, plot: { zero: true } });
  addStepTime(grid);
  addLines(grid, "Checkpoint stalls, seconds", [{ key: "checkpoint_stall_seconds", label: "stall" }],
    { positive: true, plot: { kind: "stem" } });
  data.runs.forEach((run, r) => run.ranks.length && grid.append(memoryCard(run, r)));
  const parts = new Set(data.runs.flatMap((run) => (run.time ? run.time.names : [])).map((name) => name.replace(/ /g, "_") + "_seconds"));
  const shown = new Set(["loss", "lr", "grad_norm", "tokens_per_second", "mfu", "mfu_full", "seconds", "tokens", "eval_tokens", "mtp_loss",
    "eval_seconds", "expert_load_max", ...loads, ...evals, ...parts]);
  // Updates are skipped in runs that go wrong: no plot of zeros.
  const idle = (key) => key === "skipped" && data.runs.every((run) => !run.series[key] || run.series[key].y.every((y) => y === 0));
  for (const key of keys) if (!shown.has(key) && !idle(key)) addLines(others, key, [{ key, label: key }]);
  if (others.children.length) document.body.append(html("h2", {}, "Other metrics"), others);
  document.body.append(html("h2", {}, "Job and plan"), textCards());
  const thinned = data.runs.some((run) => Object.values(run.series).some((s) => s.of > s.x.length));
  document.body.append(html("footer", { class: "note" }, "Drag over a plot to look at a span of steps, double-click to see all. " +
    "Red ticks mark steps whose value is not finite. " + (thinned
      ? `Lines are thinned: of each of ${data.buckets} equal spans of a run the smallest and the largest value are drawn.`
      : "Every step is drawn.")));
  drawAll();
  window.scrollTo(0, state.scroll);
  new ResizeObserver(drawAll).observe(grid);
  if (data.reload) setInterval(() => {
    if (dragging !== null) return;
    store();
    location.reload();
  }, data.reload * 1000);
}
build();
