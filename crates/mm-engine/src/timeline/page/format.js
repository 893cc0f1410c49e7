// Figures for people.

/** Nanoseconds to four figures: `12.34 ms`. */
function showTime(ns) {
  for (const [unit, name] of [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]]) {
    if (ns >= unit) {
      const value = ns / unit;
      return `${value.toFixed(value >= 1000 ? 1 : 3 - Math.floor(Math.log10(value)))} ${name}`;
    }
  }
  return `${Math.round(ns)} ns`;
}

/** A moment, to the digits that tell it from the next one `step` nanoseconds later: `1.2034 s`. */
function showMoment(ns, step) {
  for (const [unit, name] of [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]]) {
    if (ns >= unit || (ns === 0 && step >= unit)) {
      const digits = Math.max(0, Math.ceil(Math.log10(unit / step) - 1e-9));
      return `${(ns / unit).toFixed(Math.min(digits, 9))} ${name}`;
    }
  }
  return `${Math.round(ns)} ns`;
}

/** Bytes to a hundredth of the unit: `12.30 GiB`. */
function showBytes(bytes) {
  for (const [power, name] of [[40, "TiB"], [30, "GiB"], [20, "MiB"], [10, "KiB"]]) {
    if (bytes >= 2 ** power) return `${(bytes / 2 ** power).toFixed(2)} ${name}`;
  }
  return `${bytes} B`;
}

/** The same without a fraction that is zero, for scales. */
function showRound(bytes) {
  return showBytes(bytes).replace(/\.?0+ /, " ");
}

/** Bytes per nanosecond as a rate: `12.30 GB/s`. */
function showRate(rate) {
  for (const [unit, name] of [[1, "GB/s"], [1e-3, "MB/s"]]) {
    if (rate >= unit) return `${(rate / unit).toFixed(2)} ${name}`;
  }
  return `${(rate * 1e6).toFixed(1)} kB/s`;
}

function showShare(part, whole) {
  return whole > 0 ? `${(100 * part / whole).toFixed(1)} %` : "0 %";
}

function count(n, one, many) {
  return `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
}
