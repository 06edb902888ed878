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

const { outputFiles, metafile } = await build({
  absWorkingDir: here,
  entryPoints: ["entry.js"],
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "none",
  metafile: true,
  write: false,
  plugins: [interpreted],
});

const inputs = Object.keys(metafile.inputs).map((path) => path.match(/node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1]);
let notices = "";
for (const name of [...new Set(inputs.filter(Boolean))].sort()) {
  const folder = `${here}/node_modules/${name}`;
  const { version, license } = JSON.parse(await readFile(`${folder}/package.json`, "utf8"));
  const file = (await readdir(folder)).find((one) => /^licen[cs]e/i.test(one));
  const text = file ? await readFile(`${folder}/${file}`, "utf8") : "";
  notices += `${name} ${version} (${license})\n\n${text.replaceAll("*/", "* /").trim()}\n\n`;
}
await writeFile(target, `/*!\n${notices}*/\n${outputFiles[0].text}`);
