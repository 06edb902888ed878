// What the parts of the page share: the set, its columns, the selection, the filter, what is shown.
// Each change is announced as an event of its name; parts listen and draw themselves.

import { getColumn, getJson } from "./api.js";
import { has, maskOf, rowsWhere } from "./masks.js";

const KINDS = { class: Int16Array, number: Float32Array };

export class State extends EventTarget {
  constructor(set) {
    super();
    this.set = set;
    this.count = set.count;
    this.columns = new Map();
    this.labels = { version: 0, classes: [], counts: [] };
    this.selected = new Int32Array(0);
    this.mask = maskOf([], set.count);
    this.filter = null; // rows that the legend lets through, or null for all
    this.list = null; // {title, rows, scores} of a search or a panel, or null
    this.information = new Map();
  }

  announce(name) {
    this.dispatchEvent(new Event(name));
  }

  on(name, listener) {
    this.addEventListener(name, listener);
  }

  select(rows) {
    this.selected = Int32Array.from(rows).sort();
    this.mask = maskOf(this.selected, this.count);
    this.announce("selection");
  }

  isSelected(row) {
    return has(this.mask, row);
  }

  toggle(row) {
    const rows = new Set(this.selected);
    if (!rows.delete(row)) rows.add(row);
    this.select(rows);
  }

  setFilter(rows) {
    this.filter = rows;
    this.announce("filter");
  }

  /** Shows rows in the grid, in this order; null shows the selection, or all. */
  show(list) {
    this.list = list;
    this.announce("list");
  }

  /** The rows of the grid: of a list, else the selection, else what the filter lets through. */
  shown() {
    if (this.list !== null) return this.list;
    const count = this.selected.length;
    if (count > 0) return { title: `${plural(count, "image")} selected`, rows: this.selected };
    if (this.filter !== null)
      return { title: `${plural(this.filter.length, "image")} of the legend`, rows: this.filter };
    return { title: `All ${plural(this.count, "image")}`, rows: null };
  }

  async column(index) {
    if (!this.columns.has(index)) {
      const kind = KINDS[this.set.columns[index].kind];
      const found = await getColumn(`/api/columns/${index}`, kind);
      if (!ArrayBuffer.isView(found)) return null;
      this.columns.set(index, found);
    }
    return this.columns.get(index);
  }

  forgetColumns() {
    this.columns.clear();
  }

  async refreshSet() {
    this.set = await getJson("/api/set");
  }

  rowsOfCode(codes, wanted) {
    return rowsWhere(this.count, (row) => wanted.has(codes[row]));
  }
}

export function plural(count, word) {
  return `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
}
