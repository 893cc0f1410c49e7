// The chart: a strip of the whole recording, the axis, the lanes, the curve of memory. In CSS pixels.

const GUTTER = 76, EDGE = 14, STRIP = 34, AXIS = 26, GAP = 3, LANE_GAP = 8;
const FONT = "11px system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif";
/** Alpha of what is barely there within a pixel; an event alone must still be seen. */
const FAINTEST = 0.28;

let colours = {};
/** Where everything is; made by `arrange`. */
let layout = { width: 0, height: 0, left: GUTTER, right: 0, lanes: [], memory: { y: 0, height: 0 } };
/** What is in view: nanoseconds. */
const view = { from: 0, to: total };

function readColours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["paper", "ink", "soft", "line", "track", "memory", "plan", "budget"];
  for (const kind of Object.keys(KINDS)) names.push(kind, `on-${kind}`);
  colours = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

/** Gives each row its place; what height is left is the curve's. */
function arrange(width, windowHeight) {
  let y = STRIP + AXIS + 4;
  let before = null;
  const lanes = rows.map((row) => {
    y += before === null ? 0 : before === row.kind ? GAP : LANE_GAP;
    before = row.kind;
    const height = KINDS[row.kind].height;
    const lane = { row, y, height };
    y += height;
    return lane;
  });
  y += 28;
  const height = memory.at.length > 0 ? Math.min(Math.max(windowHeight - y - 150, 130), 220) : 0;
  layout = { width, height: y + height + 8, left: GUTTER, right: width - EDGE, lanes, memory: { y, height } };
}

const spread = () => layout.right - layout.left;
const timeAt = (x) => view.from + ((x - layout.left) / spread()) * (view.to - view.from);
const xAt = (ns) => layout.left + ((ns - view.from) / (view.to - view.from)) * spread();

/** Draws everything but what follows the pointer. */
function draw(canvas) {
  const context = canvas.getContext("2d");
  context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
  context.clearRect(0, 0, layout.width, layout.height);
  context.font = FONT;
  context.textBaseline = "middle";
  drawStrip(context);
  drawAxis(context);
  for (const lane of layout.lanes) drawLane(context, lane);
  drawNames(context);
  if (layout.memory.height > 0) drawMemory(context);
}

function drawAxis(context) {
  const step = niceStep(((view.to - view.from) * 105) / spread());
  const bottom = layout.memory.y + layout.memory.height;
  context.textAlign = "center";
  for (let n = Math.ceil(view.from / step); n * step <= view.to; n++) {
    const x = Math.round(xAt(n * step)) + 0.5;
    context.fillStyle = colours.line;
    context.fillRect(x - 0.5, STRIP + AXIS - 4, 1, bottom - STRIP - AXIS + 4);
    context.fillStyle = colours.soft;
    const text = showMoment(n * step, step);
    const half = context.measureText(text).width / 2;
    context.fillText(text, Math.min(Math.max(x, layout.left + half - 8), layout.width - half - 1), STRIP + AXIS - 13);
  }
}

/** The next of 1, 2, 5, 10, 20 … nanoseconds. */
function niceStep(least) {
  const power = 10 ** Math.floor(Math.log10(Math.max(least, 1)));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= least) ?? 10 * power;
}

/** Names of lanes; several rows of a kind have one name and their numbers. */
function drawNames(context) {
  context.textAlign = "right";
  for (const [index, { row, y, height }] of layout.lanes.entries()) {
    const alone = layout.lanes.filter((lane) => lane.row.kind === row.kind).length === 1;
    const first = layout.lanes[index - 1]?.row;
    if (first?.kind === row.kind && first.lane === row.lane) continue;
    context.fillStyle = colours.soft;
    const numbered = !alone && layout.lanes.some((lane) => lane.row.kind === row.kind && lane.row.lane !== row.lane);
    context.fillText(KINDS[row.kind].name + (numbered ? ` ${row.lane}` : ""), layout.left - 10, y + height / 2 + 0.5);
  }
}

/** Events a pixel wide and more are drawn one by one, with their names where there is room; what is finer is drawn as
 * how much of each pixel it fills. */
function drawLane(context, { row, y, height }) {
  context.fillStyle = colours.track;
  context.fillRect(layout.left, y, spread(), height);
  const scale = spread() / (view.to - view.from);
  const fill = new Float32Array(Math.ceil(spread()) + 1);
  const last = firstAbove(row.start, view.to);
  const wide = [];
  for (let i = firstAbove(row.reach, view.from - 1 / scale); i < last; i++) {
    const from = Math.max((row.start[i] - view.from) * scale, 0);
    const to = Math.min((row.end[i] - view.from) * scale, spread());
    if (to < 0) continue;
    if (to - from >= 2) wide.push([i, from, to]);
    else addTo(fill, from, Math.max(to, from + 0.01));
  }
  context.fillStyle = colours[row.kind];
  drawFill(context, fill, y, height);
  for (const [, from, to] of wide) {
    // A gap of half a pixel tells neighbours apart.
    const inset = to - from >= 4 ? 0.5 : 0;
    context.fillRect(layout.left + from, y, to - from - inset, height);
  }
  if (height < 16) return;
  context.textAlign = "left";
  context.fillStyle = colours[`on-${row.kind}`];
  for (const [i, from, to] of wide) {
    if (to - from < 16) continue;
    const { component, group } = about(row, i);
    const text = fitted(context, row.kind === "pass" ? component : group || component, to - from - 8);
    if (text) context.fillText(text, layout.left + from + 4, y + height / 2 + 0.5);
  }
}

/** Adds a stretch to how much of each pixel is filled. */
function addTo(fill, from, to) {
  const [first, last] = [Math.floor(from), Math.min(Math.floor(to), fill.length - 1)];
  if (first >= last) {
    if (first < fill.length) fill[first] += to - from;
    return;
  }
  fill[first] += first + 1 - from;
  for (let x = first + 1; x < last; x++) fill[x] += 1;
  fill[last] += to - last;
}

/** Neighbouring pixels that are filled alike are drawn at once. */
function drawFill(context, fill, y, height) {
  const shade = (amount) => (amount > 0 ? Math.round((FAINTEST + (1 - FAINTEST) * Math.min(amount, 1)) * 16) : 0);
  for (let x = 0; x < fill.length; ) {
    const alike = shade(fill[x]);
    let end = x + 1;
    while (end < fill.length && shade(fill[end]) === alike) end++;
    if (alike > 0) {
      context.globalAlpha = alike / 16;
      context.fillRect(layout.left + x, y, Math.min(end, spread()) - x, height);
    }
    x = end;
  }
  context.globalAlpha = 1;
}

/** The text where there is room for it, else what tells it from its neighbours (the number in `layers.3`), else its
 * beginning; empty: not worth writing. */
function fitted(context, text, width) {
  text = text.slice(0, 200);
  const fits = (part) => context.measureText(part).width <= width;
  if (fits(text)) return text;
  const last = text.slice(text.lastIndexOf(".") + 1);
  if (last.length < text.length && last.length > 0) return fits(last) ? last : "";
  const room = Math.floor((text.length * width) / context.measureText(text).width) - 1;
  return room >= 3 ? `${text.slice(0, room)}…` : "";
}

/** Lowest and highest level within each pixel. Unknown levels are NaN. */
function levels(width, from, to) {
  const [low, high] = [new Float64Array(width), new Float64Array(width)];
  let i = firstAbove(memory.at, from);
  let level = levelAt(from) ?? NaN;
  for (let x = 0; x < width; x++) {
    const end = from + ((x + 1) / width) * (to - from);
    [low[x], high[x]] = [level, level];
    for (; i < memory.at.length && memory.at[i] <= end; i++) {
      level = memory.level[i];
      low[x] = Number.isNaN(low[x]) ? level : Math.min(low[x], level);
      high[x] = Number.isNaN(high[x]) ? level : Math.max(high[x], level);
    }
  }
  return { low, high };
}

/** The largest figure of the scale; a budget far above everything else would make the curve flat. */
function scaleTop() {
  const { device, planned_device: planned, budget } = summary.peak;
  const most = Math.max(device, planned, 1);
  return budget <= 3 * most ? Math.max(most, budget) : most;
}

function drawMemory(context) {
  const { y, height } = layout.memory;
  const { peak } = summary;
  const top = scaleTop() * 1.12;
  const yAt = (bytes) => y + height - (bytes / top) * height;
  let step = 2 ** Math.floor(Math.log2(top));
  while (top / step < 3 && step > 1) step /= 2;
  for (let bytes = 0; bytes < top; bytes += step) {
    const at = Math.round(yAt(bytes));
    context.fillStyle = colours.line;
    context.fillRect(layout.left, Math.min(at, y + height - 1), spread(), 1);
    context.fillStyle = colours.soft;
    context.textAlign = "right";
    context.fillText(bytes === 0 ? "0" : showRound(bytes), layout.left - 10, Math.min(at, y + height - 5));
  }
  context.fillText("memory", layout.left - 10, y - 8);

  const { low, high } = levels(Math.max(Math.ceil(spread()), 1), view.from, view.to);
  context.fillStyle = colours.memory;
  fillCurve(context, low, yAt, y + height, 0.55);
  for (let x = 0; x < high.length; x++) {
    if (high[x] > low[x]) {
      context.globalAlpha = 0.3;
      context.fillRect(layout.left + x, yAt(high[x]), 1, yAt(low[x]) - yAt(high[x]));
    }
    context.globalAlpha = 1;
    if (!Number.isNaN(high[x])) context.fillRect(layout.left + x, yAt(high[x]) - 1, 1, 1.5);
  }

  // Lines closer than their texts are high have their texts on two sides.
  const close = Math.abs(yAt(peak.planned_device) - yAt(peak.budget)) < 14;
  if (peak.planned_device > 0) {
    const text = `plan ${showBytes(peak.planned_device)}`;
    line(context, yAt(peak.planned_device), colours.plan, [6, 4], text, close ? 9 : -8);
  }
  if (peak.budget > 0 && peak.budget < top) {
    line(context, yAt(peak.budget), colours.budget, [], `budget ${showBytes(peak.budget)}`, -8);
  } else if (peak.budget > 0) {
    haloed(context, `↑ budget ${showBytes(peak.budget)}, far above this scale`, layout.right - 6, y + 9, colours.ink);
  }
}

function fillCurve(context, values, yAt, floor, alpha) {
  context.globalAlpha = alpha;
  for (let x = 0; x < values.length; ) {
    let end = x + 1;
    while (end < values.length && values[end] === values[x]) end++;
    if (values[x] > 0) context.fillRect(layout.left + x, yAt(values[x]), end - x, floor - yAt(values[x]));
    x = end;
  }
  context.globalAlpha = 1;
}

function line(context, y, colour, dash, text, offset) {
  context.strokeStyle = colour;
  context.lineWidth = 1.5;
  context.setLineDash(dash);
  context.beginPath();
  context.moveTo(layout.left, y);
  context.lineTo(layout.right, y);
  context.stroke();
  context.setLineDash([]);
  haloed(context, text, layout.right - 6, y + offset, colour);
}

function haloed(context, text, x, y, colour) {
  context.textAlign = "right";
  context.lineJoin = "round";
  context.strokeStyle = colours.paper;
  context.lineWidth = 4;
  context.strokeText(text, x, y);
  context.fillStyle = colour;
  context.fillText(text, x, y);
}

/** The whole recording: its curve of memory, its stalls, and what of it is in view. */
function drawStrip(context) {
  const [y, height] = [2, STRIP - 8];
  context.fillStyle = colours.track;
  context.fillRect(layout.left, y, spread(), height);
  if (memory.at.length > 0) {
    const { high } = levels(Math.max(Math.ceil(spread()), 1), 0, total);
    context.fillStyle = colours.memory;
    fillCurve(context, high, (bytes) => y + height - (bytes / scaleTop()) * (height - 3), y + height, 0.6);
  }
  const fill = new Float32Array(Math.ceil(spread()) + 1);
  for (const row of rows.filter((row) => row.kind === "stall")) {
    for (let i = 0; i < row.start.length; i++) {
      addTo(fill, (row.start[i] / total) * spread(), (row.end[i] / total) * spread() + 0.01);
    }
  }
  context.fillStyle = colours.stall;
  drawFill(context, fill, y + height - 5, 5);
  const [from, to] = [view.from, view.to].map((ns) => layout.left + (ns / total) * spread());
  context.fillStyle = colours.paper;
  context.globalAlpha = 0.7;
  context.fillRect(layout.left, y, from - layout.left, height);
  context.fillRect(to, y, layout.right - to, height);
  context.globalAlpha = 1;
  context.strokeStyle = colours.soft;
  context.lineWidth = 1;
  context.strokeRect(Math.round(from) + 0.5, y + 0.5, Math.max(Math.round(to - from) - 1, 2), height - 1);
  context.fillStyle = colours.soft;
  context.textAlign = "right";
  context.fillText("whole", layout.left - 10, y + height / 2);
}
