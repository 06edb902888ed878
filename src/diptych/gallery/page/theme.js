// Light and dark: as the system has it, until the button is pressed.

import { find } from "./elements.js";

const KEPT_AS = "diptych-theme";

export function startTheme(changed) {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const kept = localStorage.getItem(KEPT_AS);
  if (kept !== null) document.documentElement.dataset.theme = kept;
  const now = () => document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
  const name = () => (find("theme").textContent = now() === "dark" ? "Light" : "Dark");
  find("theme").onclick = () => {
    const wanted = now() === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = wanted;
    localStorage.setItem(KEPT_AS, wanted);
    name();
    changed();
  };
  dark.addEventListener("change", () => {
    name();
    changed();
  });
  name();
}
