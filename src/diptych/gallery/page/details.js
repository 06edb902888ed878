// One image: a card beside the pointer, and a dialog with the picture and all that is known of it.

import { attempt, button, find, make } from "./elements.js";
import { short } from "./colours.js";
import { titleOf } from "./names.js";

export class Card {
  constructor(atlas, names) {
    this.atlas = atlas;
    this.names = names;
    this.place = find("card");
    atlas.onLoaded(() => atlas.repaint(this.place));
  }

  /** Shows the card of a row at a pixel of the map; a row of -1 hides it. */
  async show(row, host, at) {
    this.row = row;
    this.place.hidden = row < 0 || at === null;
    if (this.place.hidden) return;
    const text = make("p", { textContent: titleOf(row, this.names.get(row)) });
    const canvas = make("canvas", { "aria-hidden": "true" });
    this.atlas.paint(canvas, row);
    this.place.replaceChildren(canvas, text);
    const box = host.getBoundingClientRect();
    const left = Math.min(box.left + at[0] + 14, innerWidth - 190);
    const below = box.top + at[1] + 14;
    const top = below + 200 > innerHeight ? below - 220 : below;
    Object.assign(this.place.style, { left: `${Math.max(4, left)}px`, top: `${Math.max(4, top)}px` });
    await attempt(() => this.names.of(row));
    if (this.row === row) text.textContent = titleOf(row, this.names.get(row));
  }
}

export class Details {
  constructor(state, names, actions) {
    Object.assign(this, { state, names, actions });
    this.dialog = find("details");
    this.dialog.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step !== undefined && event.target.tagName !== "INPUT") this.#step(step);
    });
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close();
    });
  }

  async open(row) {
    if (row === undefined || row < 0) return;
    this.row = row;
    const one = await this.names.of(row);
    if (one === undefined) return;
    const picture = make("img", { src: `/api/pictures/${row}`, alt: titleOf(row, one), className: "picture" });
    picture.onerror = () => picture.replaceWith(make("p", { className: "missing", textContent: "The picture cannot be read." }));
    this.dialog.replaceChildren(
      make("h2", { textContent: one.name, id: "details-title" }),
      picture,
      this.#table(one),
      this.#buttons(row),
    );
    if (!this.dialog.open) this.dialog.showModal();
  }

  #table(one) {
    const { label, "given label": given, ...values } = one.values ?? {};
    const lines = [["label", one.label ?? label], ["given label", one.given ?? given], ...Object.entries(values)];
    const shown = lines.filter(([, value]) => value !== null && value !== undefined && value !== "");
    const list = make("dl");
    for (const [name, value] of shown) {
      const text = typeof value === "number" ? short(value) : String(value);
      list.append(make("dt", { textContent: name }), make("dd", { textContent: text }));
    }
    return list;
  }

  #buttons(row) {
    const run = (action) => () => {
      this.dialog.close();
      attempt(() => action(row));
    };
    const { similar, moved, show } = this.actions;
    const found = [button("Similar images", run(similar)), button("On the map", run(show))];
    if (this.state.set.runs.length > 1) found.push(button("Neighbours before and after", run(moved)));
    found.push(
      button("Previous", () => this.#step(-1)),
      button("Next", () => this.#step(1)),
      button("Close", () => this.dialog.close()),
    );
    return make("div", { className: "buttons" }, ...found);
  }

  #step(by) {
    const { rows } = this.state.shown();
    const length = rows === null ? this.state.count : rows.length;
    const at = rows === null ? this.row : rows.indexOf(this.row);
    const next = (Math.max(0, at) + by + length) % length;
    attempt(() => this.open(rows === null ? next : rows[next]));
  }
}
