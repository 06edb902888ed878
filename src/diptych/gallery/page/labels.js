// Labels: given to the selection, spread to neighbours as proposals, undone, and written out.

import { getColumn, getJson, pause, post, postJson } from "./api.js";
import { attempt, button, find, make, say } from "./elements.js";
import { maskOf } from "./masks.js";
import { plural } from "./state.js";

const RETRY_MS = 3000;

export class Labels {
  constructor(state, actions) {
    Object.assign(this, { state, actions });
    this.proposed = null;
    find("label-form").addEventListener("submit", (event) => {
      event.preventDefault();
      attempt(() => this.#give(find("class-name").value.trim()));
    });
    find("take-away").onclick = () => attempt(() => this.#give(""));
    find("undo").onclick = () => attempt(() => this.#undo());
    find("spread").onclick = () => attempt(() => this.#spread());
    find("accept").onclick = () => attempt(() => this.#accept());
    find("discard").onclick = () => this.#discard();
    find("confidence").oninput = () => this.#showConfidence();
    find("links").onclick = () => attempt(() => this.#links());
    state.on("selection", () => this.#count());
    this.#showConfidence();
  }

  async start() {
    await this.refresh();
    this.#count();
    this.#follow();
  }

  /** Takes the labels anew from the server. */
  async refresh() {
    this.state.labels = await getJson("/api/labels");
    this.state.given = await getColumn("/api/labels/codes", Int16Array);
    this.#draw();
  }

  /** Waits for changes of this window and others. */
  async #follow() {
    for (;;) {
      try {
        const { version } = await getJson(`/api/labels/changes?since=${this.state.labels.version}`);
        if (version !== this.state.labels.version) await this.#changed();
      } catch {
        await pause(RETRY_MS);
      }
    }
  }

  async #changed() {
    await this.refresh();
    this.#prune();
    this.actions.relabelled();
  }

  #draw() {
    const { classes, counts } = this.state.labels;
    find("classes").replaceChildren(...classes.map((name) => make("option", { value: name })));
    const lines = classes.map((name, code) => [name, code, counts[code]]).filter(([, , count]) => count > 0);
    const list = lines.map(([name, code, count]) => {
      const choose = button("", () => this.#choose(name, code), { title: "Select these" });
      choose.append(make("span", { textContent: name }), " ", make("small", { textContent: count.toLocaleString("en") }));
      return make("li", {}, choose);
    });
    find("given").replaceChildren(...list);
    find("none-given").hidden = list.length > 0;
  }

  #choose(name, code) {
    const rows = this.state.rowsOfCode(this.state.given, new Set([code]));
    find("class-name").value = name;
    this.state.select(rows);
  }

  #count() {
    const count = this.state.selected.length;
    find("give").textContent = count === 0 ? "Give to the selection" : `Give to ${plural(count, "image")}`;
    find("give").disabled = find("take-away").disabled = count === 0;
  }

  async #give(name) {
    if (this.state.selected.length === 0) return;
    const query = new URLSearchParams({ class: name, version: this.state.labels.version });
    const mask = maskOf(this.state.selected, this.state.count);
    const { changed } = await post(`/api/labels?${query}`, mask);
    await this.#changed();
    say(name === "" ? `${plural(changed, "label")} taken away.` : `${plural(changed, "image")} labelled ${name}.`);
  }

  async #undo() {
    const { words } = await postJson("/api/labels/undo", {});
    await this.#changed();
    say(words);
  }

  #showConfidence() {
    find("confidence-value").textContent = Number(find("confidence").value).toFixed(2);
  }

  async #spread() {
    const confidence = Number(find("confidence").value);
    const name = find("class-name").value.trim();
    const only = this.state.labels.classes.includes(name) && find("spread-only").checked;
    say("Asking the neighbours …");
    const found = await postJson("/api/labels/spread", { class: only ? name : null, confidence });
    if (found.rows.length === 0) {
      say("No image has neighbours that agree so much; lower the confidence or label more images.");
      return;
    }
    this.proposed = found;
    this.#describe();
    this.actions.list("Proposed labels", found.rows, found.confidences);
    say(`${plural(found.rows.length, "label")} proposed.`);
  }

  /** Accepts all proposals, or those that are selected where some are. */
  async #accept() {
    const chosen = this.proposed.rows.map((row) => this.state.isSelected(row));
    const keep = chosen.includes(true) ? (_, at) => chosen[at] : () => true;
    const [rows, classes] = [this.proposed.rows.filter(keep), this.proposed.classes.filter(keep)];
    const { changed } = await postJson("/api/labels/accept", { rows, classes });
    this.#discard();
    await this.#changed();
    say(`${plural(changed, "proposed label")} accepted.`);
  }

  /** Drops the proposals for images that have a label by now. */
  #prune() {
    if (this.proposed === null) return;
    const { rows, classes } = this.proposed;
    const free = (_, at) => this.state.given[rows[at]] < 0;
    this.proposed = { rows: rows.filter(free), classes: classes.filter(free) };
    this.#describe();
  }

  #describe() {
    find("proposals").hidden = this.proposed.rows.length === 0;
    find("proposals-words").textContent = wordsOf(this.proposed);
  }

  #discard() {
    this.proposed = null;
    find("proposals").hidden = true;
    this.state.show(null);
  }

  async #links() {
    const { path, words } = await postJson("/api/export", { format: "links" });
    say(words || `Links are in ${path}.`);
    find("links-path").textContent = path ?? "";
  }
}

function wordsOf({ rows, classes }) {
  const counts = new Map();
  for (const name of classes) counts.set(name, (counts.get(name) ?? 0) + 1);
  const parts = [...counts].sort((a, b) => b[1] - a[1]).map(([name, count]) => `${name} ${count.toLocaleString("en")}`);
  return `${plural(rows.length, "proposal")}: ${parts.join(", ")}. Select some to accept only those.`;
}
