// Looking around: zooming, moving, pointing.

const chart = document.getElementById("chart");
const plot = document.getElementById("plot");
const marks = document.getElementById("marks");
const tip = document.getElementById("tip");
/** The least stretch of time that is shown, nanoseconds. */
const SHORTEST = Math.min(200, total);
/** Where the pointer is in the chart; `null`: elsewhere. */
let pointer = null;
/** A drag under way: what it does and where it began. */
let drag = null;
let waiting = false;

function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    draw(plot);
    point();
  });
}

function show(from, to) {
  const length = Math.min(Math.max(to - from, SHORTEST), total);
  const centre = (from + to) / 2;
  view.from = Math.min(Math.max(centre - length / 2, 0), total - length);
  view.to = view.from + length;
  redraw();
}

const move = (share) => {
  const by = share * (view.to - view.from);
  show(view.from + by, view.to + by);
};

/** Shows `factor` times as much; the moment `at` stays where it is. */
function zoom(factor, at = (view.from + view.to) / 2) {
  const length = Math.min(Math.max((view.to - view.from) * factor, SHORTEST), total);
  const from = at - ((at - view.from) / (view.to - view.from)) * length;
  show(from, from + length);
}

const fit = () => show(0, total);

/** Moves to the next stall, or the one before, and shows it with what is around it. */
function toStall(direction) {
  const centre = (view.from + view.to) / 2;
  let best = null;
  for (const row of rows.filter((row) => row.kind === "stall")) {
    for (let i = 0; i < row.start.length; i++) {
      const ahead = ((row.start[i] + row.end[i]) / 2 - centre) * direction;
      // A little ahead, as the one in the middle is where we are.
      if (ahead > 2 && (best === null || ahead < best.ahead)) best = { ahead, from: row.start[i], to: row.end[i] };
    }
  }
  if (best === null) return;
  const length = Math.min(view.to - view.from, Math.max((best.to - best.from) * 12, SHORTEST));
  const middle = (best.from + best.to) / 2;
  show(middle - length / 2, middle + length / 2);
}

/** The event under the pointer. */
function pointed() {
  if (pointer === null || pointer.x < layout.left - 3 || pointer.x > layout.right + 3) return null;
  const lane = layout.lanes.find(({ y, height }) => pointer.y >= y - 1 && pointer.y <= y + height + 1);
  if (lane === undefined) return null;
  const index = nearest(lane.row, timeAt(pointer.x), (4 / spread()) * (view.to - view.from));
  return index >= 0 ? { ...lane, index } : null;
}

/** Draws what follows the pointer: a line, the event's outline, its details. */
function point() {
  const context = marks.getContext("2d");
  context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
  context.clearRect(0, 0, layout.width, layout.height);
  const inside = pointer !== null && pointer.x >= layout.left && pointer.x <= layout.right && pointer.y > STRIP;
  if (drag?.does === "mark" && pointer !== null) {
    context.fillStyle = colours.compute;
    context.globalAlpha = 0.18;
    context.fillRect(drag.x, STRIP, pointer.x - drag.x, layout.height);
    context.globalAlpha = 1;
  }
  if (!inside || drag?.does === "move") {
    tip.hidden = true;
    return;
  }
  context.fillStyle = colours.soft;
  context.fillRect(Math.round(pointer.x), STRIP + AXIS - 4, 1, layout.memory.y + layout.memory.height - STRIP - AXIS + 4);
  const event = pointed();
  if (event !== null) {
    const { row, y, height, index } = event;
    const from = Math.max(xAt(row.start[index]), layout.left);
    const to = Math.min(xAt(row.end[index]), layout.right);
    context.strokeStyle = colours.ink;
    context.lineWidth = 2;
    context.strokeRect(from - 1, y - 1, Math.max(to - from, 1) + 2, height + 2);
  }
  tell(event);
}

function tell(event) {
  const at = timeAt(pointer.x);
  const inMemory = layout.memory.height > 0 && pointer.y >= layout.memory.y;
  const lines = [];
  let [title, colour, note] = [`at ${showMoment(Math.max(at, 0), (view.to - view.from) / 1000)}`, null, null];
  if (event !== null) {
    const { row, index } = event;
    const { component, group, bytes } = about(row, index);
    const length = row.end[index] - row.start[index];
    [title, colour] = [KINDS[row.kind].says, row.kind];
    lines.push(["component", component || "—"]);
    if (group) lines.push(["group", group]);
    lines.push(["took", showTime(length)]);
    if (bytes > 0) lines.push(["bytes", `${bytes.toLocaleString("en")} (${showBytes(bytes)})`]);
    if (bytes > 0 && length > 0) lines.push(["rate", showRate(bytes / length)]);
    const step = Math.max(Math.min(length / 100, 1e6), 1);
    lines.push(["from", showMoment(row.start[index], step)], ["to", showMoment(row.end[index], step)]);
    const pixel = (view.to - view.from) / spread();
    const beside = firstAbove(row.start, at + pixel / 2) - firstAbove(row.reach, at - pixel / 2);
    if (beside > 1) note = `one of ${beside.toLocaleString("en")} within this pixel; zoom in`;
  } else if (inMemory) {
    colour = "memory";
    const [level, i] = [levelAt(at), firstAbove(memory.at, at) - 1];
    lines.push(["on the device", level === null ? "not known" : `${level.toLocaleString("en")} (${showBytes(level)})`]);
    if (i >= 0) {
      const change = memory.level[i] - (i > 0 ? memory.level[i - 1] : 0);
      if (i > 0 || summary.dropped_events === 0) {
        lines.push([change < 0 ? "freed last" : "allocated last", showBytes(Math.abs(change))]);
      }
      lines.push(["since", showMoment(memory.at[i], Math.max((view.to - view.from) / 1000, 1))]);
    }
    const { planned_device: planned, budget } = summary.peak;
    if (planned > 0 && level !== null) lines.push(["of the plan", showShare(level, planned)]);
    if (budget > 0 && level !== null) lines.push(["of the budget", showShare(level, budget)]);
  } else {
    tip.hidden = true;
    return;
  }
  fillTip(title, colour, lines, note);
}

function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text !== null) made.textContent = text;
  made.append(...children);
  return made;
}

function swatch(colour) {
  const made = element("i", null);
  made.style.background = `var(--${colour})`;
  return made;
}

/** Names are set as text, whatever is in them. */
function fillTip(title, colour, lines, note) {
  const head = element("h2", null, ...(colour ? [swatch(colour)] : []), title);
  const list = element("dl", null, ...lines.flatMap(([name, value]) => [element("dt", name), element("dd", value.slice(0, 300))]));
  tip.replaceChildren(head, list, ...(note ? [element("p", note)] : []));
  tip.hidden = false;
  const [width, height] = [tip.offsetWidth, tip.offsetHeight];
  const right = pointer.x + 16 + width <= layout.width;
  const x = right ? pointer.x + 16 : Math.max(pointer.x - 16 - width, 0);
  const y = Math.min(Math.max(pointer.y + 14, 0), Math.max(layout.height - height - 2, 0));
  tip.style.transform = `translate(${Math.round(x)}px, ${Math.round(y)}px)`;
}

function place(event) {
  const box = chart.getBoundingClientRect();
  pointer = { x: event.clientX - box.left, y: event.clientY - box.top };
}

function throughStrip() {
  const centre = ((pointer.x - layout.left) / spread()) * total;
  const half = (view.to - view.from) / 2;
  show(centre - half, centre + half);
}

chart.addEventListener("wheel", (event) => {
  // There is nothing more to zoom out to: the page scrolls.
  if (event.deltaY > 0 && !event.shiftKey && !event.ctrlKey && view.to - view.from >= total) return;
  event.preventDefault();
  place(event);
  const unit = event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 400 : 1;
  const sideways = event.shiftKey && event.deltaX === 0 ? event.deltaY : event.deltaX;
  if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) move((sideways * unit) / spread());
  else zoom(Math.exp(Math.min(Math.max(event.deltaY * unit, -300), 300) * 0.002), timeAt(pointer.x));
}, { passive: false });

chart.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  place(event);
  chart.setPointerCapture(event.pointerId);
  const does = pointer.y < STRIP ? "strip" : event.shiftKey ? "mark" : "move";
  drag = { does, x: pointer.x, from: view.from, to: view.to };
  chart.classList.add(does === "mark" ? "marking" : "dragged");
  if (does === "strip") throughStrip();
});

chart.addEventListener("pointermove", (event) => {
  place(event);
  if (drag?.does === "move") {
    const by = ((drag.x - pointer.x) / spread()) * (drag.to - drag.from);
    show(drag.from + by, drag.to + by);
  } else if (drag?.does === "strip") throughStrip();
  else point();
});

function drop(event) {
  if (drag?.does === "mark" && event.type === "pointerup" && Math.abs(pointer.x - drag.x) > 3) {
    const [from, to] = [timeAt(drag.x), timeAt(pointer.x)].sort((a, b) => a - b);
    show(from, to);
  }
  drag = null;
  chart.classList.remove("marking", "dragged");
  redraw();
}
chart.addEventListener("pointerup", drop);
chart.addEventListener("pointercancel", drop);
chart.addEventListener("pointerleave", () => {
  pointer = null;
  point();
});

chart.addEventListener("dblclick", () => {
  const event = pointed();
  if (event === null) return fit();
  const [from, to] = [event.row.start[event.index], event.row.end[event.index]];
  const around = Math.max((to - from) * 0.25, SHORTEST / 2);
  show(from - around, to + around);
});

const KEYS = {
  ArrowLeft: () => move(-0.2), a: () => move(-0.2), ArrowRight: () => move(0.2), d: () => move(0.2),
  "+": () => zoom(0.7), "=": () => zoom(0.7), w: () => zoom(0.7), "-": () => zoom(1 / 0.7), s: () => zoom(1 / 0.7),
  0: fit, Home: () => show(0, view.to - view.from), End: () => show(total - (view.to - view.from), total),
  n: () => toStall(1), p: () => toStall(-1),
};
document.addEventListener("keydown", (event) => {
  const key = KEYS[event.key];
  if (key === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  key();
});

function size() {
  const width = Math.max(chart.clientWidth, 320);
  const above = chart.getBoundingClientRect().top + window.scrollY;
  arrange(width, window.innerHeight - above - 40);
  chart.style.height = `${layout.height}px`;
  for (const canvas of [plot, marks]) {
    [canvas.width, canvas.height] = [width * devicePixelRatio, layout.height * devicePixelRatio];
    [canvas.style.width, canvas.style.height] = [`${width}px`, `${layout.height}px`];
  }
  redraw();
}

function legend() {
  const item = (mark, text) => element("li", null, mark, text);
  const kinds = Object.keys(KINDS).filter((kind) => rows.some((row) => row.kind === kind));
  const items = kinds.map((kind) => item(swatch(kind), KINDS[kind].says));
  const rule = (colour, dashed) => {
    const made = element("i", null);
    made.className = dashed ? "rule dashed" : "rule";
    made.style.borderColor = `var(--${colour})`;
    return made;
  };
  if (memory.at.length > 0) {
    items.push(item(swatch("memory"), "weights on the device"));
    if (summary.peak.planned_device > 0) items.push(item(rule("plan", true), "plan"));
    if (summary.peak.budget > 0) items.push(item(rule("budget", false), "budget"));
  }
  document.getElementById("legend").append(...items);
}

function components() {
  const staged = summary.stage_ns > 0;
  const names = ["component", "passes", "time of passes", "copied", "copying", ...(staged ? ["staging"] : []), "computing", "stalled", "waited"];
  const or = (show, value) => (value === 0 ? "–" : show(value));
  const cells = (name, work) => [
    name, or((n) => n.toLocaleString("en"), work.passes), or(showTime, work.pass_ns), or(showBytes, work.copied_bytes),
    or(showTime, work.copy_ns), ...(staged ? [or(showTime, work.stage_ns)] : []), or(showTime, work.compute_ns),
    or(showTime, work.stall_ns), or(showTime, work.wait_ns),
  ];
  const row = (name, texts) => element("tr", null, ...texts.map((text) => element(name, text)));
  const body = summary.components.map((work) => row("td", cells(work.name, work)));
  body.push(row("td", cells("all", summary)));
  document.getElementById("components").append(element("thead", null, row("th", names)), element("tbody", null, ...body));
}

function begin() {
  const words = inWords();
  document.getElementById("words").append(...words.map((part) => part.figure === undefined ? part : element("b", part.figure)));
  chart.setAttribute("aria-label", words.map((part) => part.figure ?? part).join(""));
  if (summary.dropped_events > 0) {
    const told = document.getElementById("dropped");
    told.textContent = `The oldest ${count(summary.dropped_events, "event was", "events were")} not kept: figures and chart are of the rest.`;
    told.hidden = false;
  }
  document.title = `Timeline: ${showTime(summary.duration_ns)}`;
  for (const [id, does] of [["zoom-in", KEYS["+"]], ["zoom-out", KEYS["-"]], ["fit", fit], ["stall-next", KEYS.n], ["stall-before", KEYS.p]]) {
    document.getElementById(id).addEventListener("click", does);
  }
  const stalls = rows.some((row) => row.kind === "stall");
  for (const id of ["stall-next", "stall-before"]) document.getElementById(id).disabled = !stalls;
  readColours();
  if (events === 0) {
    for (const hidden of document.querySelectorAll("nav, main, .help, .wide")) hidden.hidden = true;
    return;
  }
  legend();
  components();
  size();
  new ResizeObserver(size).observe(document.body);
  // Also where only the height changes, or how fine the pixels are.
  window.addEventListener("resize", size);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    readColours();
    redraw();
  });
}

begin();
