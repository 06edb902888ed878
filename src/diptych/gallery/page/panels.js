// What was found in the set: copies, outliers, contradicted labels, clusters; which images to label;
// neighbours before and after. Each finding is a line of thumbnails that opens in the grid.

import { getJson, pause, postJson } from "./api.js";
import { attempt, button, find, make, say } from "./elements.js";
import { titleOf } from "./names.js";

const AT_ONCE = 20;
const STRIP = 10;

export class Panels {
  constructor(state, atlas, names, actions) {
    Object.assign(this, { state, atlas, names, actions });
    this.place = find("findings");
    atlas.onLoaded(() => atlas.repaint(this.place));
    find("finding").addEventListener("change", () => attempt(() => this.open()));
    find("subset-form").addEventListener("submit", (event) => {
      event.preventDefault();
      attempt(() => this.#subset());
    });
  }

  /** Fetches the panel that is chosen, from its first finding on. */
  async open() {
    const name = find("finding").value;
    find("subset-form").hidden = name !== "subset";
    this.place.replaceChildren();
    const turn = this.#turn();
    if (name === "subset") return;
    const page = await this.#page(name, 0, turn);
    if (this.turn !== turn) return;
    this.place.append(make("p", { textContent: page.words }));
    if (page.total === 0) this.place.append(make("p", { className: "soft", textContent: "There are none." }));
    await this.#add(name, page, 0, turn);
  }

  /** Begins something to show; what comes of earlier turns is left out. */
  #turn() {
    this.turn = (this.turn ?? 0) + 1;
    return this.turn;
  }

  async #page(name, first, turn) {
    for (;;) {
      const page = await getJson(`/api/panels/${name}?first=${first}&count=${AT_ONCE}`);
      if (page.progress === undefined || this.turn !== turn) return page;
      this.place.replaceChildren(make("p", { className: "soft", textContent: `Looking … ${percent(page.progress)}` }));
      await pause(1000);
      if (this.turn === turn) this.place.replaceChildren();
    }
  }

  async #add(name, page, first, turn) {
    if (this.turn !== turn) return;
    const rows = page.items.flatMap((item) => item.rows.slice(0, STRIP));
    await this.names.fetch(rows);
    if (this.turn !== turn) return;
    this.place.append(...page.items.map((item) => this.#item(item)));
    const next = first + page.items.length;
    if (next >= page.total || page.items.length === 0) return;
    const more = button(`More (${(page.total - next).toLocaleString("en")})`, async () => {
      more.remove();
      const following = await attempt(() => this.#page(name, next, turn));
      if (following) await this.#add(name, following, next, turn);
    });
    this.place.append(more);
  }

  #item({ rows, scores, text }) {
    const open = button("In the grid", () => this.actions.list(text, rows, scores));
    open.setAttribute("aria-label", `Show in the grid: ${text}`);
    const select = button("Select", () => this.state.select(rows));
    select.setAttribute("aria-label", `Select: ${text}`);
    const head = make("div", { className: "head" }, make("span", { textContent: text }), open, select);
    return make("section", { className: "item" }, head, this.#strip(rows));
  }

  #strip(rows) {
    const cells = rows.slice(0, STRIP).map((row) => {
      const canvas = make("canvas", { "aria-hidden": "true" });
      this.atlas.paint(canvas, row);
      const title = titleOf(row, this.names.get(row));
      const cell = make("button", { type: "button", title, "aria-label": title }, canvas);
      cell.onclick = () => this.actions.pick(row);
      cell.onmouseenter = () => this.actions.hover(row);
      return cell;
    });
    const rest = rows.length - STRIP;
    if (rest > 0) cells.push(make("small", { textContent: `+${rest}` }));
    return make("div", { className: "strip" }, ...cells);
  }

  async #subset() {
    const budget = Number(find("budget").value);
    say("Choosing …");
    const { rows } = await postJson("/api/subset", { budget, way: find("way").value });
    this.actions.list(`${rows.length} images to label next`, rows);
    this.state.select(rows);
    say(`${rows.length} images were chosen.`);
  }

  /** Shows the nearest images of a row in both runs. */
  async moved(row) {
    const { runs, shared } = await getJson(`/api/moved?row=${row}&k=${STRIP}`);
    await this.names.fetch([row, ...runs.flatMap((run) => run.rows)]);
    this.#turn();
    find("subset-form").hidden = true;
    const words = `Nearest images of ${this.names.get(row).name} in both runs; ${shared} of ${STRIP} are the same.`;
    const strips = runs.map((run) => {
      const head = make("div", { className: "head" }, make("span", { textContent: this.state.set.titles?.[run.name] ?? run.name }));
      return make("section", { className: "item" }, head, this.#strip(run.rows));
    });
    this.place.replaceChildren(make("p", { textContent: words }), this.#strip([row]), ...strips);
  }
}

function percent(share) {
  return `${Math.round(100 * share)}%`;
}
