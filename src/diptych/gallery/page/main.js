// Puts the page together: fetches the set, makes the parts, and wires them to each other.

import { Fault, getJson, getWhenReady } from "./api.js";
import { Atlas } from "./atlas.js";
import { coloursOf } from "./colours.js";
import { Card, Details } from "./details.js";
import { attempt, find, make, say } from "./elements.js";
import { Grid } from "./grid.js";
import { listenToKeys } from "./keys.js";
import { Labels } from "./labels.js";
import { Legend } from "./legend.js";
import { MapView } from "./mapview.js";
import { Names } from "./names.js";
import { Panels } from "./panels.js";
import { Search } from "./search.js";
import { State, plural } from "./state.js";
import { openTab, startTabs } from "./tabs.js";
import { startTheme } from "./theme.js";

class Page {
  constructor(set) {
    this.state = new State(set);
    this.names = new Names();
    this.atlas = new Atlas(set.thumbnails);
    this.card = new Card(this.atlas, this.names);
    this.maps = [];
    const actions = {
      pick: (row) => this.pick(row),
      open: (row) => attempt(() => this.details.open(row)),
      hover: (row) => this.hover(row),
      similar: (row) => this.similar(row),
      moved: (row) => this.moved(row),
      show: (row) => this.showOnMap(row),
      list: (title, rows, scores) => this.list(title, rows, scores),
      relabelled: () => this.relabelled(),
      filtered: () => attempt(() => this.colour()),
    };
    this.actions = actions;
    this.details = new Details(this.state, this.names, actions);
    this.grid = new Grid(this.state, this.atlas, this.names, actions);
    this.legend = new Legend(this.state, actions);
    this.panels = new Panels(this.state, this.atlas, this.names, actions);
    this.labels = new Labels(this.state, actions);
    this.search = new Search(this.state, this.names);
  }

  async start() {
    const { set } = this.state;
    document.title = `${set.title} · gallery`;
    find("title").textContent = set.title;
    find("facts").textContent = plural(set.count, "image");
    this.grid.refresh();
    startTabs((name) => name === "found" && attempt(() => this.panels.open()));
    this.#listen();
    listenToKeys(this);
    await attempt(() => this.labels.start());
    this.#offerColumns();
    await attempt(() => this.addMap(set.runs[0]));
  }

  #listen() {
    const { state } = this;
    state.on("selection", () => {
      for (const map of this.maps) map.setSelection(state.selected);
      find("clear").disabled = state.selected.length === 0;
    });
    state.on("filter", () => this.maps.forEach((map) => attempt(() => map.setFilter(state.filter))));
    for (const mode of document.querySelectorAll("[data-mode]"))
      if (mode.tagName === "BUTTON") mode.onclick = () => this.setMode(mode.dataset.mode);
    find("zoom-in").onclick = () => this.maps.forEach((map) => map.zoom(1.5));
    find("zoom-out").onclick = () => this.maps.forEach((map) => map.zoom(1 / 1.5));
    find("reset").onclick = () => this.maps.forEach((map) => map.fit());
    find("colour").onchange = () => {
      this.legend.clear();
      attempt(() => this.colour());
    };
    find("with-thumbnails").onchange = () => this.maps.forEach((map) => map.wantThumbnails(find("with-thumbnails").checked));
    find("clear").onclick = () => state.select([]);
    find("back").onclick = () => this.back();
    find("select-shown").onclick = () => this.selectShown();
    find("help-button").onclick = () => find("help").showModal();
    find("second-label").hidden = state.set.runs.length < 2;
    find("second").onchange = () => attempt(() => this.toggleSecond());
    startTheme(() => this.maps.forEach((map) => map.theme()));
  }

  /** Adds the map of a run beside those there are, once the server has it. */
  async addMap(run) {
    const title = this.state.set.titles?.[run] ?? run;
    const view = new MapView(find("maps"), run, title, this);
    this.maps.push(view);
    this.#nameMaps();
    const points = await getWhenReady(`/api/maps/${run}`, Float32Array, (share) => view.wait(share));
    if (!(await view.start(points))) return;
    view.setMode(this.mode ?? "pan");
    await this.colour();
    if (this.state.filter !== null) await view.setFilter(this.state.filter);
    view.setSelection(this.state.selected);
    document.documentElement.dataset.ready = this.maps.length;
  }

  async toggleSecond() {
    const wanted = find("second").checked;
    if (wanted && this.maps.length < 2) await this.addMap(this.state.set.runs[1]);
    if (!wanted && this.maps.length > 1) this.maps.pop().remove();
    this.#nameMaps();
  }

  #nameMaps() {
    find("maps").classList.toggle("two", this.maps.length > 1);
  }

  #offerColumns() {
    const { columns } = this.state.set;
    const options = columns.map((column, index) => make("option", { value: index, textContent: column.name }));
    find("colour").replaceChildren(make("option", { value: -1, textContent: "none" }), ...options);
    const labelled = columns.findIndex((column) => column.kind === "class" && column.classes?.length > 0);
    // Without labels by cluster, as soon as the clusters are found.
    find("colour").value = labelled >= 0 ? labelled : columns.findIndex((column) => column.name === "cluster");
  }

  /** Colours the maps by the column that is chosen, and draws the legend. */
  async colour() {
    const index = Number(find("colour").value);
    if (index < 0) {
      find("legend").replaceChildren();
      await Promise.all(this.maps.map((map) => map.setColours(null)));
      return;
    }
    const values = await this.state.column(index);
    if (values === null) {
      say(`${this.state.set.columns[index].name} is still being computed.`);
      setTimeout(() => Number(find("colour").value) === index && attempt(() => this.colour()), 1500);
      return;
    }
    if (!this.state.set.columns[index].ready) await this.state.refreshSet();
    const column = this.state.set.columns[index];
    const named = column.name === "given label" ? { ...column, classes: this.state.labels.classes } : column;
    const coloured = coloursOf(named, values, this.state.filter);
    this.legend.draw(named, values, coloured);
    await Promise.all(this.maps.map((map) => map.setColours(coloured)));
  }

  setMode(mode) {
    this.mode = mode;
    for (const map of this.maps) map.setMode(mode);
    for (const one of document.querySelectorAll("button[data-mode]"))
      one.setAttribute("aria-pressed", String(one.dataset.mode === mode));
  }

  /** Selects rows that the map was asked for, and opens the grid on them. */
  selectRows(rows, added) {
    this.state.list = null;
    this.state.select(added ? new Set([...this.state.selected, ...rows]) : rows);
    if (rows.length === 1) this.current = rows[0];
    if (this.state.selected.length > 0) openTab("images", true);
  }

  pick(row) {
    this.current = row;
    this.actions.open(row);
  }

  hover(row) {
    for (const map of this.maps) map.hover(row);
  }

  async similar(row) {
    await attempt(() => this.search.similar(row));
    this.current = row;
    openTab("images");
  }

  async moved(row) {
    openTab("found", true);
    await this.panels.moved(row);
  }

  async showOnMap(row) {
    this.current = row;
    await Promise.all(this.maps.map((map) => map.zoomTo([row])));
    this.hover(row);
  }

  list(title, rows, scores) {
    this.state.show({ title, rows: Int32Array.from(rows), scores });
    openTab("images", true);
  }

  back() {
    this.state.list = null;
    if (this.state.selected.length > 0) this.state.select([]);
    else this.state.show(null);
  }

  selectShown() {
    const { rows } = this.state.shown();
    this.state.select(rows ?? Int32Array.from({ length: this.state.count }, (_, row) => row));
  }

  async relabelled() {
    this.names.forget();
    this.state.forgetColumns();
    this.grid.draw();
    const index = Number(find("colour").value);
    if (this.state.set.columns[index]?.name === "given label") await attempt(() => this.colour());
  }
}

try {
  const page = new Page(await getJson("/api/set"));
  globalThis.gallery = page; // for the console
  await page.start();
} catch (error) {
  if (!(error instanceof Fault)) throw error;
  say(error.message, true);
}
