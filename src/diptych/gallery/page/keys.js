// The keyboard: keys of the map, and those of the whole page.

import { attempt, find, say } from "./elements.js";
import { titleOf } from "./names.js";

const DIRECTIONS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };

export function listenToKeys(page) {
  find("maps").addEventListener("keydown", (event) => {
    const view = page.maps.find((one) => one.host.contains(event.target));
    if (view?.map && onMap(page, view, event)) event.preventDefault();
  });
  addEventListener("keydown", (event) => {
    const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
    if (typing || document.querySelector("dialog[open]")) return;
    if (event.key === "Escape") page.back();
    else if (event.key === "z" && (event.ctrlKey || event.metaKey)) find("undo").click();
    else return;
    event.preventDefault();
  });
}

function onMap(page, view, event) {
  const { map } = view;
  const direction = DIRECTIONS[event.key];
  if (direction && event.shiftKey) map.pan(-0.2 * direction[0], 0.2 * direction[1]);
  else if (direction) step(page, view, direction);
  else if (event.key === "+" || event.key === "=") map.zoom(1.3);
  else if (event.key === "-") map.zoom(1 / 1.3);
  else if (event.key === "0") map.fit();
  else if (page.current === undefined) return false;
  else if (event.key === "Enter") page.pick(page.current);
  else if (event.key === " ") page.state.toggle(page.current);
  else if (event.key === "s") page.similar(page.current);
  else return false;
  return true;
}

/** Goes to the nearest image in a direction; the first time to the one nearest the middle. */
function step(page, view, direction) {
  const { map } = view;
  const known = page.current !== undefined && map.isShown(page.current);
  const middle = [map.host.clientWidth / 2, map.host.clientHeight / 2];
  const from = known ? map.position(page.current) : middle;
  const next = map.nearest(...from, known ? direction : [0, 0], known ? page.current : -1);
  if (next < 0) return;
  page.current = next;
  page.hover(next);
  const at = map.position(next);
  const outside = at[0] < 0 || at[1] < 0 || at[0] > map.host.clientWidth || at[1] > map.host.clientHeight;
  if (outside) map.zoomTo([next]);
  attempt(async () => {
    await page.card.show(next, map.host, at);
    if (page.current === next) say(titleOf(next, await page.names.of(next)));
  });
}
