// Names, labels and values of rows, fetched a screen at a time and kept.

import { post } from "./api.js";

const AT_ONCE = 500;
const KEPT = 20_000;

export class Names {
  constructor() {
    this.known = new Map();
  }

  get(row) {
    return this.known.get(row);
  }

  /** Fetches what is not known of some rows. */
  async fetch(rows) {
    if (this.known.size > KEPT) this.known.clear();
    const missing = [...new Set(rows)].filter((row) => row >= 0 && !this.known.has(row));
    for (let at = 0; at < missing.length; at += AT_ONCE) {
      const some = Int32Array.from(missing.slice(at, at + AT_ONCE));
      const found = await post("/api/rows", some.buffer);
      found.forEach((one, index) => this.known.set(some[index], one));
    }
  }

  async of(row) {
    await this.fetch([row]);
    return this.known.get(row);
  }

  forget() {
    this.known.clear();
  }
}

/** What a row is called where there is room for one line. */
export function titleOf(row, one) {
  if (one === undefined) return `image ${row + 1}`;
  const label = one.given || one.label;
  return label ? `${one.name}, ${label}` : one.name;
}
