// One map on the page with its heading, thumbnails and words; it loads the renderer when it is needed.

import { NONE_COLOUR } from "./colours.js";
import { attempt, make } from "./elements.js";
import { PointMap } from "./map.js";
import { Thumbnails } from "./thumbnails.js";

const WITHOUT_RENDERER =
  "The map needs its renderer, which this installation does not have. In a checkout, with npm installed, " +
  "run `make renderer`; wheels contain it. All else on this page works without it.";
const WITHOUT_WEBGL = "This browser has no WebGL, which the map needs. All else on this page works without it.";

export class MapView {
  constructor(place, run, title, page) {
    this.page = page;
    this.run = run;
    this.words = make("p", { className: "wait" });
    const canvas = make("canvas", {
      className: "points",
      tabIndex: 0,
      role: "application",
      "aria-roledescription": "map",
      "aria-label": `Map of ${page.state.count.toLocaleString("en")} images, ${title}. Arrow keys go from image to image, Enter opens one.`,
    });
    const overlay = make("canvas", { className: "thumbnails", "aria-hidden": "true" });
    const box = make("div", { className: "box", hidden: true });
    this.host = make("div", { className: "map" }, canvas, overlay, box, this.words);
    this.figure = make("figure", {}, make("figcaption", { textContent: title }), this.host);
    place.append(this.figure);
  }

  wait(share) {
    this.words.textContent = `The map is being computed … ${Math.round(100 * (share ?? 0))}%`;
  }

  fail(words) {
    this.words.textContent = words;
    this.words.classList.add("fault");
    return false;
  }

  /** Draws points; false, with words where the map would be, if that cannot be. */
  async start(points) {
    let createScatterplot;
    try {
      ({ default: createScatterplot } = await import("./renderer.js"));
    } catch {
      return this.fail(WITHOUT_RENDERER);
    }
    if (document.createElement("canvas").getContext("webgl") === null) return this.fail(WITHOUT_WEBGL);
    this.map = new PointMap(this.host, createScatterplot, {
      select: (rows, added) => this.page.selectRows(rows, added),
      hover: (row) => this.#hovered(row),
      view: () => this.thumbnails?.moved(),
      hit: (x, y) => this.thumbnails?.hit(x, y) ?? -1,
    });
    await this.map.setPoints(points);
    this.thumbnails = new Thumbnails(this.map, this.page.atlas, this.page.state);
    this.thumbnails.moved();
    this.words.textContent = "";
    return true;
  }

  #hovered(row) {
    const at = row < 0 ? null : this.map.position(row);
    attempt(() => this.page.card.show(row, this.host, at));
    for (const other of this.page.maps) if (other !== this) other.hover(row);
  }

  hover(row) {
    this.map?.hover(row);
  }

  theme() {
    this.map?.theme();
    this.thumbnails?.moved();
  }

  setMode(mode) {
    this.map?.setMode(mode);
  }

  zoom(factor) {
    this.map?.zoom(factor);
  }

  fit() {
    return this.map?.fit();
  }

  zoomTo(rows) {
    return this.map?.zoomTo(rows);
  }

  wantThumbnails(wanted) {
    if (this.thumbnails === undefined) return;
    this.thumbnails.wanted = wanted;
    this.thumbnails.moved();
  }

  async setColours(coloured) {
    const none = { codes: new Uint8Array(this.page.state.count), colours: [NONE_COLOUR] };
    await this.map?.setColours(coloured ?? none);
    this.thumbnails?.moved();
  }

  setSelection(rows) {
    this.map?.setSelection(rows);
    this.thumbnails?.moved();
  }

  async setFilter(rows) {
    await this.map?.setFilter(rows);
    this.setSelection(this.page.state.selected); // of which the filter had left some out
  }

  remove() {
    this.map?.destroy();
    this.map = undefined;
    this.figure.remove();
  }
}
