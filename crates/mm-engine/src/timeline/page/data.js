// What was recorded, unpacked so that what is visible is found by bisection.

const KINDS = {
  pass: { name: "pass", says: "pass", height: 20 },
  wait: { name: "wait", says: "pass waits to begin", height: 12 },
  compute: { name: "compute", says: "compute", height: 24 },
  stall: { name: "stall", says: "compute stalls for a copy", height: 12 },
  stage: { name: "staging", says: "staging", height: 20 },
  copy: { name: "copy", says: "copy", height: 20 },
};

const data = JSON.parse(document.getElementById("data").textContent);
const { summary } = data;
/** Nanoseconds from the first event to the last; never zero, so that it can be divided by. */
const total = Math.max(summary.duration_ns, 1);
const rows = data.rows.map(unpackRow);
const memory = { at: sums(data.memory.at), level: Float64Array.from(data.memory.in_use) };
const events = rows.reduce((sum, row) => sum + row.start.length, memory.at.length);

function sums(differences) {
  let at = 0;
  return Float64Array.from(differences, (step) => (at += step));
}

function unpackRow({ kind, lane, start, duration, label, size }) {
  const starts = sums(start);
  const ends = starts.map((at, i) => at + duration[i]);
  // Rises also where spans overlap; so the first one that reaches into view can be bisected for.
  let last = 0;
  const reach = ends.map((end) => (last = Math.max(last, end)));
  return { kind, lane, start: starts, end: ends, reach, label, size };
}

/** The first index whose value is above `value`, in values that never fall. */
function firstAbove(values, value) {
  let [low, high] = [0, values.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] > value) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** Which event of a row is at this moment, or nearest to it within `slack`; -1: none. */
function nearest(row, at, slack) {
  const after = firstAbove(row.start, at + slack);
  let [best, distance] = [-1, Infinity];
  for (let i = firstAbove(row.reach, at - slack - 1); i < after; i++) {
    const off = Math.max(row.start[i] - at, at - row.end[i], 0);
    if (off < distance || (off === distance && row.end[i] - row.start[i] < row.end[best] - row.start[best])) {
      [best, distance] = [i, off];
    }
  }
  return distance <= slack ? best : -1;
}

function about(row, i) {
  const [component, group] = data.labels[row.label[i]];
  return { component: data.components[component], group, bytes: row.size.length ? data.sizes[row.size[i]] : 0 };
}

/** Bytes in use at a moment; `null` before the first that is known. */
function levelAt(at) {
  const i = firstAbove(memory.at, at) - 1;
  return i >= 0 ? memory.level[i] : summary.dropped_events > 0 ? null : 0;
}

/** What happened, in parts: texts, and figures to be set off. */
function inWords() {
  const { peak, components } = summary;
  if (events === 0) return ["Nothing was recorded."];
  const words = [
    { figure: showTime(summary.duration_ns) }, ", ", { figure: count(summary.passes, "pass", "passes") },
    ` of ${count(components.length, "component", "components")}. `,
  ];
  if (summary.copied_bytes > 0) {
    words.push({ figure: showBytes(summary.copied_bytes) }, " were copied; ",
      { figure: `${(summary.overlap_permille / 10).toFixed(1)} %` }, " of the time of copying ran beside computing. ");
  }
  if (summary.stall_ns > 0) {
    words.push("Compute stalled for ", { figure: showTime(summary.stall_ns) },
      `, ${showShare(summary.stall_ns, summary.pass_ns)} of the time of passes. `);
  } else if (summary.passes > 0) {
    words.push("Compute never stalled. ");
  }
  if (summary.wait_ns > 0) words.push("Passes waited ", { figure: showTime(summary.wait_ns) }, " to begin. ");
  if (memory.at.length > 0) {
    words.push("At most ", { figure: showBytes(peak.device) }, " were on the device");
    if (peak.planned_device > 0) {
      const same = peak.device === peak.planned_device;
      words.push(same ? ", as planned to the byte" : `; planned were ${showBytes(peak.planned_device)}`);
    }
    words.push(peak.budget > 0 ? `; the budget is ${showBytes(peak.budget)}.` : ".");
  }
  return words;
}
