// One map of points. regl-scatterplot draws it; keys, touch, box and nearest points are here.

import { NONE_COLOUR } from "./colours.js";
import { makeTouchable } from "./touch.js";

const AWAY = 1000; // where rows without a point are put: outside all views
const DRAG_PIXELS = 4;

export class PointMap {
  constructor(host, createScatterplot, listeners) {
    this.host = host;
    this.listeners = listeners;
    this.canvas = host.querySelector("canvas");
    this.mode = "pan";
    this.drawn = false;
    this.moved = false; // whether the user chose a view
    this.plot = createScatterplot({
      canvas: this.canvas,
      lassoInitiator: false,
      lassoOnLongPress: false,
      deselectOnDblClick: false,
      deselectOnEscape: false,
      actionKeyMap: { lasso: "shift", merge: "ctrl", remove: "alt" },
      spatialIndexUseWorker: false, // a worker from a blob is against the content policy
    });
    this.plot.subscribe("select", ({ points }) => listeners.select([...points]));
    this.plot.subscribe("pointover", (row) => this.#over(row));
    this.plot.subscribe("pointout", () => this.#over(-1));
    this.plot.subscribe("view", () => listeners.view());
    this.#listen();
    makeTouchable(this.canvas);
    this.observer = new ResizeObserver(() => this.#resize());
    this.observer.observe(host);
  }

  /** Takes float32 pairs; a row whose pair is NaN has no point. */
  async setPoints(pairs) {
    const count = pairs.length / 2;
    this.x = new Float32Array(count);
    this.y = new Float32Array(count);
    this.extremes = [-1, -1, -1, -1]; // rows at left, right, bottom, top
    for (let row = 0; row < count; row += 1) {
      const there = !Number.isNaN(pairs[2 * row]);
      this.x[row] = there ? pairs[2 * row] : AWAY;
      this.y[row] = there ? pairs[2 * row + 1] : AWAY;
      if (there) this.#noteExtremes(row);
    }
    this.codes = new Uint8Array(count);
    this.colours = [NONE_COLOUR];
    const large = count > 300_000;
    await this.plot.set({
      pointSize: count > 50_000 ? 2 : count > 5_000 ? 3 : 5,
      pointSizeSelected: 2,
      pointOutlineWidth: 1,
      opacity: large ? 1 : 0.8,
      opacityInactiveScale: 0.35,
    });
    this.theme();
    await this.#draw();
    this.drawn = true;
    await this.fit(false);
  }

  #noteExtremes(row) {
    const e = this.extremes;
    if (e[0] < 0 || this.x[row] < this.x[e[0]]) e[0] = row;
    if (e[1] < 0 || this.x[row] > this.x[e[1]]) e[1] = row;
    if (e[2] < 0 || this.y[row] < this.y[e[2]]) e[2] = row;
    if (e[3] < 0 || this.y[row] > this.y[e[3]]) e[3] = row;
  }

  async setColours({ codes, colours }) {
    this.codes = codes;
    this.colours = colours;
    await this.#draw();
  }

  async #draw() {
    await this.plot.set({
      colorBy: this.colours.length > 1 ? "valueA" : null,
      pointColor: this.colours,
    });
    const spatialIndex = this.spatialIndex;
    const options = { zDataType: "categorical", preventFilterReset: true, spatialIndex };
    await this.plot.draw({ x: this.x, y: this.y, valueA: this.codes }, options);
    this.spatialIndex = this.plot.get("spatialIndex");
  }

  theme() {
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--point").trim();
    this.plot.set({
      backgroundColor: style.getPropertyValue("--map").trim(),
      pointColorActive: ink,
      pointColorHover: ink,
      lassoColor: ink,
      reticleColor: [0.5, 0.5, 0.5, 0.3],
    });
  }

  setSelection(rows) {
    if (!this.drawn) return;
    this.plot.select([...rows], { preventEvent: true });
  }

  async setFilter(rows) {
    this.filter = rows === null ? null : new Set(rows);
    if (!this.drawn) return;
    if (rows === null) await this.plot.unfilter({ preventEvent: true });
    else await this.plot.filter([...rows], { preventEvent: true });
  }

  setMode(mode) {
    this.mode = mode;
    this.host.dataset.mode = mode;
    this.plot.set({ mouseMode: mode === "lasso" ? "lasso" : "panZoom", cameraIsFixed: mode === "box" });
  }

  /** Moves the view to some rows. */
  async zoomTo(rows) {
    const there = [...rows].filter((row) => this.x[row] !== AWAY);
    if (there.length > 1) await this.plot.zoomToPoints(there, { padding: 0.3, transition: true, transitionDuration: 300 });
    else if (there.length === 1) await this.plot.zoomToLocation([this.x[there[0]], this.y[there[0]]], 0.15, { transition: true, transitionDuration: 300 });
  }

  /** Shows all points; a map that is higher than wide has to be looked at from further away. */
  async fit(transition = true) {
    this.moved = false;
    const { clientWidth, clientHeight } = this.host;
    const distance = Math.max(1, clientHeight / Math.max(1, clientWidth));
    await this.plot.zoomToLocation([0, 0], distance, { transition, transitionDuration: 300 });
  }

  zoom(factor) {
    const camera = this.plot.get("camera");
    camera.scale([factor, factor], [0, 0]);
    this.plot.redraw();
    requestAnimationFrame(() => this.listeners.view());
  }

  pan(right, up) {
    this.plot.get("camera").pan([right, up]);
    this.plot.redraw();
    requestAnimationFrame(() => this.listeners.view());
  }

  /** How data become pixels: left = ax * x + bx, top = ay * y + by; null before points are drawn. */
  frame() {
    if (!this.drawn || this.extremes[0] < 0) return null;
    const at = (row) => this.plot.getScreenPosition(row);
    const [left, right, bottom, top] = this.extremes;
    const wide = this.x[right] - this.x[left];
    const high = this.y[top] - this.y[bottom];
    if (wide <= 0 || high <= 0) return null;
    const ax = (at(right)[0] - at(left)[0]) / wide;
    const ay = (at(top)[1] - at(bottom)[1]) / high;
    return { ax, ay, bx: at(left)[0] - ax * this.x[left], by: at(bottom)[1] - ay * this.y[bottom] };
  }

  isShown(row) {
    return this.x[row] !== AWAY && (this.filter == null || this.filter.has(row));
  }

  /** Rows inside a rectangle of pixels. */
  rowsIn(left, top, right, bottom) {
    const frame = this.frame();
    if (frame === null) return [];
    const low = (left - frame.bx) / frame.ax;
    const high = (right - frame.bx) / frame.ax;
    const floor = (bottom - frame.by) / frame.ay;
    const roof = (top - frame.by) / frame.ay;
    const rows = [];
    for (let row = 0; row < this.x.length; row += 1) {
      const [x, y] = [this.x[row], this.y[row]];
      if (x >= low && x <= high && y >= floor && y <= roof && this.isShown(row)) rows.push(row);
    }
    return rows;
  }

  /** The row nearest to a pixel in a direction, [0, 0] for any; -1 where there is none. */
  nearest(left, top, [right, down] = [0, 0], but = -1) {
    const frame = this.frame();
    if (frame === null) return -1;
    let [best, least] = [-1, Infinity];
    for (let row = 0; row < this.x.length; row += 1) {
      if (row === but || !this.isShown(row)) continue;
      const dx = frame.ax * this.x[row] + frame.bx - left;
      const dy = frame.ay * this.y[row] + frame.by - top;
      const along = dx * right + dy * down;
      const aside = Math.abs(dx * down) + Math.abs(dy * right);
      if ((right !== 0 || down !== 0) && (along <= 0 || aside > along)) continue;
      const far = dx * dx + dy * dy;
      if (far < least) [best, least] = [row, far];
    }
    return best;
  }

  position(row) {
    const frame = this.frame();
    return frame === null ? null : [frame.ax * this.x[row] + frame.bx, frame.ay * this.y[row] + frame.by];
  }

  hover(row) {
    if (this.drawn) this.plot.hover(row, { preventEvent: true });
  }

  #over(row) {
    if (this.listeners.hit(...(this.mouse ?? [-1, -1])) < 0) this.listeners.hover(row);
  }

  /** Nothing may be asked of the renderer any more. */
  destroy() {
    this.observer.disconnect();
    this.drawn = false;
    this.plot.destroy();
  }

  #resize() {
    if (!this.drawn) return;
    this.plot.set({ width: "auto", height: "auto" });
    if (!this.moved) this.fit(false);
    requestAnimationFrame(() => this.listeners.view());
  }

  #listen() {
    const local = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    let pressed = [0, 0];
    this.host.addEventListener("mousedown", (event) => {
      pressed = local(event);
      if (this.mode === "box" && event.button === 0 && !event.shiftKey) this.#dragBox(event, local);
    }, true);
    this.host.addEventListener("mousemove", (event) => {
      this.mouse = local(event);
      const row = event.buttons === 0 ? this.listeners.hit(...this.mouse) : -1;
      if (row >= 0) this.listeners.hover(row);
    });
    for (const kind of ["mousedown", "wheel"])
      this.canvas.addEventListener(kind, () => (this.moved = true), { passive: true });
    this.host.addEventListener("mouseleave", () => this.listeners.hover(-1));
    this.host.addEventListener("click", (event) => {
      const at = local(event);
      const row = this.listeners.hit(...at);
      if (row < 0 || Math.hypot(at[0] - pressed[0], at[1] - pressed[1]) > DRAG_PIXELS) return;
      event.stopPropagation();
      this.listeners.select([row], event.ctrlKey || event.metaKey);
    }, true);
  }

  #dragBox(event, local) {
    event.stopPropagation();
    const [x, y] = local(event);
    const box = this.host.querySelector(".box");
    const corners = (at) => [Math.min(x, at[0]), Math.min(y, at[1]), Math.max(x, at[0]), Math.max(y, at[1])];
    const move = (moved) => {
      const [left, top, right, bottom] = corners(local(moved));
      Object.assign(box.style, { left: `${left}px`, top: `${top}px`, width: `${right - left}px`, height: `${bottom - top}px` });
      box.hidden = false;
    };
    const up = (ended) => {
      box.hidden = true;
      removeEventListener("mousemove", move, true);
      removeEventListener("mouseup", up, true);
      const [left, top, right, bottom] = corners(local(ended));
      if (right - left > DRAG_PIXELS && bottom - top > DRAG_PIXELS)
        this.listeners.select(this.rowsIn(left, top, right, bottom), ended.ctrlKey || ended.metaKey);
    };
    addEventListener("mousemove", move, true);
    addEventListener("mouseup", up, true);
  }
}
