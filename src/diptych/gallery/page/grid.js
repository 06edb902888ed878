// A grid of thumbnails of any length: only the cells in sight are elements.

import { attempt, find, make } from "./elements.js";
import { titleOf } from "./names.js";

const GAP = 6;
const HIGHEST = 8_000_000; // pixels; browsers cut off elements much higher than this
const NAMES_AFTER_MS = 150;

export class Grid {
  constructor(state, atlas, names, listeners) {
    Object.assign(this, { state, atlas, names, listeners });
    this.place = find("grid");
    this.sizer = find("grid-sizer");
    this.cells = new Map(); // position to element
    this.active = 0;
    this.place.addEventListener("scroll", () => this.draw());
    this.place.addEventListener("keydown", (event) => this.#key(event));
    this.place.addEventListener("click", (event) => this.#click(event));
    this.place.addEventListener("dblclick", () => this.listeners.open(this.#rowAt(this.active)));
    this.place.addEventListener("mouseover", (event) => {
      const cell = event.target.closest(".cell");
      if (cell) listeners.hover(this.#rowAt(Number(cell.dataset.at)));
    });
    this.place.addEventListener("mouseleave", () => listeners.hover(-1));
    new ResizeObserver(() => this.draw()).observe(this.place);
    atlas.onLoaded(() => atlas.repaint(this.sizer));
    for (const name of ["selection", "filter", "list"]) state.on(name, () => this.refresh());
  }


  /** Takes what is to be shown anew, from the top unless only the selection changed. */
  refresh() {
    const list = this.state.shown();
    const same = this.list !== undefined && list.rows === this.list.rows && list.title === this.list.title;
    this.list = list;
    find("grid-title").textContent = list.title;
    find("back").hidden = this.state.list === null && this.state.selected.length === 0;
    if (!same) {
      this.active = 0;
      this.place.scrollTop = 0;
    }
    this.#clear();
    this.draw();
  }

  get length() {
    return this.list.rows === null ? this.state.count : this.list.rows.length;
  }

  #rowAt(position) {
    return this.list.rows === null ? position : this.list.rows[position];
  }

  #clear() {
    for (const cell of this.cells.values()) cell.remove();
    this.cells.clear();
  }

  #shape() {
    const width = this.place.clientWidth - GAP;
    const across = Math.max(1, Math.round(width / (width < 420 ? 78 : 98)));
    const step = width / across;
    const lines = Math.ceil(this.length / across);
    const full = lines * step + GAP;
    // A very long grid scrolls faster than its pixels, so that its end is within reach.
    const high = Math.min(full, HIGHEST);
    const room = this.place.clientHeight;
    const pace = high > room ? (full - room) / (high - room) : 1;
    return { step, across, lines, high, pace };
  }

  draw() {
    if (this.list === undefined || this.place.clientWidth === 0) return;
    const { step, across, lines, high, pace } = this.#shape();
    if (step !== this.step) this.#clear();
    Object.assign(this, { across, step });
    this.sizer.style.height = `${high}px`;
    const { scrollTop, clientHeight } = this.place;
    const top = scrollTop * pace;
    const first = Math.max(0, Math.floor(top / step) - 1) * across;
    const last = Math.min(this.length, Math.min(lines, Math.ceil((top + clientHeight) / step) + 1) * across);
    for (const [position, cell] of this.cells)
      if (position < first || position >= last) {
        cell.remove();
        this.cells.delete(position);
      }
    for (let position = first; position < last; position += 1) {
      const cell = this.cells.get(position) ?? this.#makeCell(position);
      const y = GAP + Math.floor(position / across) * step - top + scrollTop;
      cell.style.transform = `translate(${GAP + (position % across) * step}px, ${y}px)`;
    }
    this.#point();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => attempt(() => this.#name(first, last)), NAMES_AFTER_MS);
  }

  #makeCell(position) {
    const row = this.#rowAt(position);
    const score = this.list.scores?.[position];
    const cell = make("div", {
      id: `cell-${position}`,
      className: "cell",
      role: "option",
      "aria-selected": String(this.state.isSelected(row)),
      "aria-setsize": this.length,
      "aria-posinset": position + 1,
      "aria-label": titleOf(row, this.names.get(row)),
      "data-at": position,
    });
    cell.style.width = cell.style.height = `${this.step - GAP}px`;
    const canvas = make("canvas", { "aria-hidden": "true" });
    this.atlas.paint(canvas, row);
    cell.append(canvas);
    if (score !== undefined) cell.append(make("span", { className: "score", textContent: score.toFixed(2) }));
    this.sizer.append(cell);
    this.cells.set(position, cell);
    return cell;
  }

  async #name(first, last) {
    const rows = [];
    for (let position = first; position < last; position += 1) rows.push(this.#rowAt(position));
    await this.names.fetch(rows);
    for (const [position, cell] of this.cells) {
      const row = this.#rowAt(position);
      const title = titleOf(row, this.names.get(row));
      cell.setAttribute("aria-label", title);
      cell.title = title;
    }
  }

  #point() {
    for (const [position, cell] of this.cells) cell.classList.toggle("active", position === this.active);
    if (this.cells.has(this.active)) this.place.setAttribute("aria-activedescendant", `cell-${this.active}`);
    else this.place.removeAttribute("aria-activedescendant");
  }

  #click(event) {
    const cell = event.target.closest(".cell");
    if (!cell) return;
    const position = Number(cell.dataset.at);
    const row = this.#rowAt(position);
    if (event.shiftKey) this.#selectBetween(this.active, position);
    else if (event.ctrlKey || event.metaKey) this.#toggle(row);
    else this.listeners.pick(row);
    this.active = position;
    this.#point();
  }

  #keep() {
    // Selecting must not take the list away that one selects in.
    if (this.state.list === null) this.state.list = { ...this.list, rows: this.list.rows ?? null };
  }

  #toggle(row) {
    this.#keep();
    this.state.toggle(row);
  }

  #selectBetween(one, other) {
    this.#keep();
    const [first, last] = one < other ? [one, other] : [other, one];
    const rows = new Set(this.state.selected);
    for (let position = first; position <= last; position += 1) rows.add(this.#rowAt(position));
    this.state.select(rows);
  }

  #key(event) {
    const moves = {
      ArrowRight: 1,
      ArrowLeft: -1,
      ArrowDown: this.across,
      ArrowUp: -this.across,
      PageDown: this.across * 4,
      PageUp: -this.across * 4,
      Home: -Infinity,
      End: Infinity,
    };
    const row = this.#rowAt(this.active);
    if (event.key in moves) this.#move(moves[event.key]);
    else if (event.key === " ") this.#toggle(row);
    else if (event.key === "Enter") this.listeners.open(row);
    else if (event.key === "s") this.listeners.similar(row);
    else return;
    event.preventDefault();
  }

  #move(by) {
    if (this.length === 0) return;
    this.active = Math.max(0, Math.min(this.length - 1, this.active + by));
    const { step, pace } = this.#shape();
    const y = Math.floor(this.active / this.across) * step;
    const top = this.place.scrollTop * pace;
    if (y < top) this.place.scrollTop = y / pace;
    else if (y + step > top + this.place.clientHeight)
      this.place.scrollTop = (y + step + GAP - this.place.clientHeight) / pace;
    this.draw();
    this.listeners.hover(this.#rowAt(this.active));
  }
}
