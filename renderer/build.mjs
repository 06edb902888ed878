// Bundles regl-scatterplot to the one file that the gallery's page loads.
import { readFile } from "node:fs/promises";
import { build } from "esbuild";

// regl makes the code of its draw calls from text, by `Function`, which the page's content policy
// refuses. The bundle interprets that text instead; all that comes to it is regl's own.
const interpreted = {
  name: "interpreted",
  setup(step) {
    step.onLoad({ filter: /regl[/]dist[/]regl\.js$/ }, async ({ path }) => {
      const text = await readFile(path, "utf8");
      const parts = text.split("Function.apply(null, ");
      if (parts.length !== 2) throw new Error(`${path}: one call of Function was expected`);
      const contents = 'var compiled = require("interpreted");\n' + parts.join("compiled(");
      return { contents, loader: "js" };
    });
    step.onResolve({ filter: /^interpreted$/ }, () => ({ path: `${import.meta.dirname}/interpreted.cjs` }));
  },
};

await build({
  entryPoints: [`${import.meta.dirname}/entry.js`],
  outfile: process.argv[2] ?? `${import.meta.dirname}/../src/diptych/gallery/page/renderer.js`,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "inline",
  plugins: [interpreted],
});
