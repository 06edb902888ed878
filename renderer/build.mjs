// Bundles regl-scatterplot, with the licences of all that goes in, to the file that the page loads.
import { readFile, readdir, writeFile } from "node:fs/promises";
import { build } from "esbuild";

const here = import.meta.dirname;
const target = process.argv[2] ?? `${here}/../src/diptych/gallery/page/renderer.js`;

// regl makes the code of its draw calls from text, by `Function`, which the page's content policy
// refuses. The bundle interprets that text instead; all that comes to it is regl's own.
const interpreted = {
  name: "interpreted",
  setup(step) {
    step.onLoad({ filter: /regl[/\\]dist[/\\]regl\.js$/ }, async ({ path }) => {
      const parts = (await readFile(path, "utf8")).split("Function.apply(null, ");
      if (parts.length !== 2) throw new Error(`${path}: one call of Function was expected`);
      const contents = 'var compiled = require("interpreted");\n' + parts.join("compiled(");
      return { contents, loader: "js" };
    });
    step.onResolve({ filter: /^interpreted$/ }, () => ({ path: `${here}/interpreted.cjs` }));
  },
};

const { outputFiles } = await build({
  absWorkingDir: here,
  entryPoints: ["entry.js"],
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "none",
  write: false,
  plugins: [interpreted],
});

const { packages } = JSON.parse(await readFile(`${here}/package-lock.json`, "utf8"));
let notices = "";
for (const [path, { version, license, dev }] of Object.entries(packages)) {
  if (path === "" || dev) continue;
  const file = (await readdir(`${here}/${path}`)).find((one) => /^licen[cs]e/i.test(one));
  const text = file ? await readFile(`${here}/${path}/${file}`, "utf8") : "";
  notices += `${path.split("node_modules/").pop()} ${version} (${license})\n\n${text.replaceAll("*/", "* /").trim()}\n\n`;
}
await writeFile(target, `/*!\n${notices}*/\n${outputFiles[0].text}`);
