// The legend of the colours; its lines filter the map and the grid.

import { button, find, make } from "./elements.js";
import { rowsWhere } from "./masks.js";

const MOST_LINES = 200;

export class Legend {
  constructor(state, listeners) {
    this.state = state;
    this.listeners = listeners;
    this.on = new Set();
  }

  /** Forgets the filter; for another column. */
  clear() {
    this.on.clear();
    this.state.setFilter(null);
  }

  draw(column, values, coloured) {
    this.values = column.kind === "class" ? values : coloured.codes;
    this.lines = coloured.lines;
    const all = button("All", () => this.#toggle(null), { "aria-pressed": String(this.on.size === 0), className: "line" });
    const lines = this.lines.slice(0, MOST_LINES).map((line, at) => this.#line(line, at));
    const rest = this.lines.length - MOST_LINES;
    find("legend").replaceChildren(all, ...lines, ...(rest > 0 ? [`and ${rest} more`] : []));
  }

  #line(line, at) {
    const mark = make("i", { className: "mark" });
    mark.style.background = line.colour;
    const on = this.#codes(line).some((code) => this.on.has(code));
    return make(
      "button",
      {
        type: "button",
        className: "line",
        "aria-pressed": String(on),
        title: "Show only these",
        onclick: () => this.#toggle(at),
      },
      mark,
      make("span", { textContent: line.name }),
      " ",
      make("small", { textContent: line.count.toLocaleString("en") }),
    );
  }

  #codes(line) {
    return line.codes ?? [line.code];
  }

  #toggle(at) {
    const focused = at === null ? 0 : at + 1;
    if (at === null) this.on.clear();
    else {
      const codes = this.#codes(this.lines[at]);
      const was = this.on.has(codes[0]);
      for (const code of codes) was ? this.on.delete(code) : this.on.add(code);
    }
    const rows = this.on.size === 0 ? null : rowsWhere(this.state.count, (row) => this.on.has(this.values[row]));
    this.state.setFilter(rows);
    this.listeners.filtered();
    find("legend").children[focused]?.focus();
  }
}
