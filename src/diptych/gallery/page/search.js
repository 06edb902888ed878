// Search by an image of the set, by a file, by dropping and by pasting one.

import { post, postJson } from "./api.js";
import { attempt, find, say } from "./elements.js";

const NEIGHBOURS = 60;
const LARGEST = 20_000_000; // bytes; the server refuses more

export class Search {
  constructor(state, names) {
    Object.assign(this, { state, names });
    const { upload, why } = state.set.search;
    const input = find("upload");
    if (!upload) {
      input.addEventListener("click", (event) => {
        event.preventDefault();
        say(`No search by other images: ${why}`);
      });
      return;
    }
    input.addEventListener("change", () => {
      this.#use(input.files[0]);
      input.value = "";
    });
    addEventListener("paste", (event) => this.#use(imageOf(event.clipboardData)));
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => {
      event.preventDefault();
      this.#use(imageOf(event.dataTransfer));
    });
  }

  get run() {
    return this.state.set.runs[0];
  }

  /** Shows the images most like one of the set. */
  async similar(row) {
    const found = await postJson("/api/neighbours", { row, k: NEIGHBOURS, run: this.run });
    const one = await this.names.of(row);
    this.#show(`Most like ${one.name}`, found);
  }

  #use(file) {
    if (file) attempt(() => this.#byFile(file));
  }

  async #byFile(file) {
    if (file.size > LARGEST) {
      say(`${file.name} is larger than 20 MB.`, true);
      return;
    }
    say(`Searching for images like ${file.name} …`);
    const found = await post(`/api/search?k=${NEIGHBOURS}&run=${encodeURIComponent(this.run)}`, file);
    this.#show(`Most like ${file.name || "the pasted image"}`, found);
    say(`${found.rows.length} images like ${file.name || "the pasted image"}.`);
  }

  #show(title, { rows, similarities }) {
    this.state.select([]);
    this.state.show({ title, rows: Int32Array.from(rows), scores: similarities });
  }
}

function imageOf(transfer) {
  return [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/"));
}
