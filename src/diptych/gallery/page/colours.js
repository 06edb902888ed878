// Colours of points: classes by a palette that colour-blind people can tell apart, numbers by cividis.

// From the ninth on each is, among colours that show on both backgrounds, the farthest (CIEDE2000) from
// those before it and from gray, as people with normal sight, protanopia, deuteranopia and
// tritanopia see them.
export const CLASS_COLOURS = [
  "#3c75b9", "#e25570", "#4e7732", "#dab216", "#5dc0e9", "#8e3277", "#af8916", "#4f4723",
  "#1a0de6", "#8c738c", "#bfb2a6", "#1a594c", "#7f8cf2", "#bf3366", "#f28c73", "#0d99b2",
];
const CIVIDIS = [
  "#163770", "#35456c", "#4a536c", "#5e626e", "#6f7073", "#817f78",
  "#948e77", "#a99f73", "#beaf6b", "#d4c15f", "#ead34c", "#fee838",
];
export const NONE_COLOUR = "#9a9da3";

/** Point colours of a column: a code for each row, a colour for each code, lines of the legend. */
export function coloursOf(column, values, filter) {
  return column.kind === "class" ? ofClasses(column, values, filter) : ofNumbers(column, values);
}

/** The commonest classes among those shown have a colour each, and all others share one. */
function ofClasses(column, values, filter) {
  const counts = countsOf(values, null);
  const shown = filter === null ? counts : countsOf(values, filter);
  const byCount = [...shown.keys()]
    .filter((code) => code >= 0)
    .sort((a, b) => shown.get(b) - shown.get(a) || a - b);
  const place = new Map(byCount.slice(0, CLASS_COLOURS.length).map((code, at) => [code, at]));
  const other = CLASS_COLOURS.length;
  const codes = Uint8Array.from(values, (value) => place.get(value) ?? other);
  const order = [...counts.keys()].sort(
    (a, b) => (place.get(a) ?? other) - (place.get(b) ?? other) || (a < 0) - (b < 0) || counts.get(b) - counts.get(a),
  );
  const lines = order.map((code) => ({
    code,
    name: nameOf(column, code),
    count: counts.get(code),
    colour: place.has(code) ? CLASS_COLOURS[place.get(code)] : NONE_COLOUR,
  }));
  return { codes, colours: [...CLASS_COLOURS, NONE_COLOUR], lines };
}

function countsOf(values, rows) {
  const counts = new Map();
  const add = (value) => counts.set(value, (counts.get(value) ?? 0) + 1);
  if (rows === null) values.forEach(add);
  else for (const row of rows) add(values[row]);
  return counts;
}

export function nameOf(column, code) {
  return code < 0 ? "none" : String(column.classes?.[code] ?? code);
}

/** Four ranges of equal width in the legend; the colours go on evenly. */
function ofNumbers(column, values) {
  const [low, high] = boundsOf(column, values);
  const width = high - low || 1;
  const none = CIVIDIS.length;
  const stepOf = (value) => Math.min(none - 1, Math.floor(((value - low) / width) * none));
  const codes = Uint8Array.from(values, (value) => (Number.isNaN(value) ? none : Math.max(0, stepOf(value))));
  const counts = new Uint32Array(none + 1);
  for (const code of codes) counts[code] += 1;
  const lines = [0, 3, 6, 9].map((first) => ({
    codes: [first, first + 1, first + 2],
    name: `${short(low + (width * first) / none)} to ${short(low + (width * (first + 3)) / none)}`,
    count: counts[first] + counts[first + 1] + counts[first + 2],
    colour: CIVIDIS[first + 1],
  }));
  if (counts[none] > 0) lines.push({ codes: [none], name: "none", count: counts[none], colour: NONE_COLOUR });
  return { codes, colours: [...CIVIDIS, NONE_COLOUR], lines };
}

function boundsOf(column, values) {
  if (Number.isFinite(column.low) && Number.isFinite(column.high)) return [column.low, column.high];
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : [0, 1];
}

export function short(value) {
  return Number.isFinite(value) ? String(Number(value.toPrecision(3))) : "none";
}
