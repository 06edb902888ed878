// Thumbnails come in sheets of many; a sheet is fetched when one of its rows is first seen.

const KEPT = 48; // sheets held at once
const AGAIN_MS = 2000; // the server is still making a sheet that it has not

export class Atlas {
  constructor(shape) {
    this.shape = shape;
    this.perSheet = shape.rows * shape.columns;
    this.sheets = new Map();
    this.listeners = new Set();
  }

  onLoaded(listener) {
    this.listeners.add(listener);
  }

  /** Where the thumbnail of a row lies: its sheet, and x and y in the sheet's pixels. */
  place(row) {
    const within = row % this.perSheet;
    const { side, columns } = this.shape;
    const sheet = Math.floor(row / this.perSheet);
    return { sheet, x: (within % columns) * side, y: Math.floor(within / columns) * side };
  }

  /** The image of a sheet, or null while it is not there. */
  image(sheet) {
    const known = this.sheets.get(sheet);
    if (known === undefined) {
      this.#fetch(sheet);
      return null;
    }
    this.sheets.delete(sheet); // the sheet seen last is dropped last
    this.sheets.set(sheet, known);
    return known.complete && known.naturalWidth > 0 ? known : null;
  }

  #fetch(sheet) {
    if (sheet >= this.shape.pages) return;
    const image = new Image();
    this.sheets.set(sheet, image);
    image.onload = () => this.listeners.forEach((listener) => listener());
    image.onerror = () =>
      setTimeout(() => {
        if (this.sheets.get(sheet) === image) this.sheets.delete(sheet);
        this.listeners.forEach((listener) => listener());
      }, AGAIN_MS);
    image.src = `/api/thumbnails/${sheet}`;
    while (this.sheets.size > KEPT) this.sheets.delete(this.sheets.keys().next().value);
  }

  /** Draws the thumbnail of a row; false while its sheet is not there. */
  draw(context, row, x, y, size) {
    const place = this.place(row);
    const image = this.image(place.sheet);
    if (image === null) return false;
    const { side } = this.shape;
    context.drawImage(image, place.x, place.y, side, side, x, y, size, size);
    return true;
  }

  /** A canvas with the thumbnail of a row, drawn as soon as it is there. */
  paint(canvas, row) {
    canvas.dataset.row = row;
    const { side } = this.shape;
    if (canvas.width !== side) canvas.width = canvas.height = side;
    const context = canvas.getContext("2d");
    if (this.draw(context, row, 0, 0, side)) {
      delete canvas.dataset.waiting;
      return;
    }
    context.clearRect(0, 0, side, side);
    canvas.dataset.waiting = "";
  }

  /** Paints the canvases below an element that still wait. */
  repaint(element) {
    for (const canvas of element.querySelectorAll("canvas[data-waiting]"))
      this.paint(canvas, Number(canvas.dataset.row));
  }
}
