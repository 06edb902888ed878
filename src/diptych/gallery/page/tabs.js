// Tabs beside the map. The grid stays in sight below labels and export, as one selects in it.

import { find } from "./elements.js";

const WITH_GRID = new Set(["images", "labels", "export"]);
let announce = () => {};
let opened = "images";

export function startTabs(listener) {
  announce = listener;
  const tabs = [...document.querySelectorAll("[role=tab]")];
  tabs.forEach((tab, at) => {
    tab.onclick = () => openTab(nameOf(tab));
    tab.onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step === undefined) return;
      const next = tabs[(at + step + tabs.length) % tabs.length];
      openTab(nameOf(next));
      next.focus();
    };
  });
}

function nameOf(tab) {
  return tab.getAttribute("aria-controls");
}

/** Opens a tab; quietly where its content is already known or its grid is in sight. */
export function openTab(name, quietly = false) {
  if (quietly && name === "images" && WITH_GRID.has(opened)) return;
  opened = name;
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const chosen = nameOf(tab) === name;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    const shown = chosen || (nameOf(tab) === "images" && WITH_GRID.has(name));
    find(nameOf(tab)).hidden = !shown;
  }
  if (!quietly) announce(name);
}
