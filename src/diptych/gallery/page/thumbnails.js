// Thumbnails over the map, as soon as the view holds few enough points. At most one for each cell of
// a grid; which rows are shown is chosen when the view rests, and while it moves they move with it.

const SETTLED_MS = 120;
const CROWDED = 4; // points for each cell above which only points are shown

export class Thumbnails {
  constructor(map, atlas, state) {
    this.map = map;
    this.atlas = atlas;
    this.state = state;
    this.wanted = true;
    this.rows = [];
    this.canvas = map.host.querySelector(".thumbnails");
    atlas.onLoaded(() => this.moved());
  }

  moved() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.rows = this.#choose();
      this.#draw();
    }, SETTLED_MS);
    this.#draw();
  }

  #size() {
    return this.map.host.clientWidth < 500 ? 40 : 52;
  }

  #choose() {
    const frame = this.map.frame();
    if (!this.wanted || frame === null) return [];
    const { clientWidth: width, clientHeight: height } = this.map.host;
    const rows = this.map.rowsIn(0, 0, width, height);
    const size = this.#size() + 6;
    if (rows.length > (CROWDED * width * height) / (size * size)) return [];
    const taken = [];
    return rows.filter((row) => {
      const x = frame.ax * this.map.x[row] + frame.bx;
      const y = frame.ay * this.map.y[row] + frame.by;
      if (taken.some(([left, top]) => Math.abs(left - x) < size && Math.abs(top - y) < size)) return false;
      taken.push([x, y]);
      return true;
    });
  }

  #draw() {
    const { clientWidth: width, clientHeight: height } = this.map.host;
    const scale = devicePixelRatio || 1;
    this.canvas.width = width * scale;
    this.canvas.height = height * scale;
    const frame = this.map.frame();
    this.boxes = [];
    if (frame === null) return;
    const context = this.canvas.getContext("2d");
    context.scale(scale, scale);
    for (const row of this.rows) this.#drawOne(context, frame, row);
  }

  #drawOne(context, frame, row) {
    const size = this.#size();
    const left = frame.ax * this.map.x[row] + frame.bx - size / 2;
    const top = frame.ay * this.map.y[row] + frame.by - size / 2;
    if (!this.map.isShown(row)) return;
    const anySelected = this.state.selected.length > 0;
    const selected = this.state.isSelected(row);
    context.globalAlpha = anySelected && !selected ? 0.45 : 1;
    context.fillStyle = this.map.colours[this.map.codes[row]];
    context.fillRect(left - 2, top - 2, size + 4, size + 4);
    if (!this.atlas.draw(context, row, left, top, size)) return;
    if (selected) {
      context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--point");
      context.lineWidth = 2;
      context.strokeRect(left - 3, top - 3, size + 6, size + 6);
    }
    this.boxes.push([left, top, row]);
  }

  /** The row whose thumbnail lies under a pixel, or -1. */
  hit(x, y) {
    const size = this.#size();
    for (const [left, top, row] of this.boxes ?? [])
      if (x >= left && x <= left + size && y >= top && y <= top + size) return row;
    return -1;
  }
}
