// Builds the page: web/ -> dist/web/, three files beside index.html.
import { cpSync, mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const root = join(fileURLToPath(import.meta.url), "..", "..");
const target = join(root, "dist", "web");
rmSync(target, { recursive: true, force: true });
mkdirSync(target, { recursive: true });
await build({
  entryPoints: [
    { in: join(root, "web", "main.tsx"), out: "main" },
    { in: join(root, "web", "style", "main.css"), out: "main" },
  ],
  outdir: target,
  bundle: true,
  minify: true,
  format: "esm",
  // What has <dialog>, :focus-visible, structuredClone and Array.findLast.
  target: ["chrome110", "firefox115", "safari16.4"],
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none",
  logLevel: "warning",
});
for (const name of ["index.html", "icon.svg"]) cpSync(join(root, "web", name), join(target, name));
