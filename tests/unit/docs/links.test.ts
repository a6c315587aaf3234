import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { test } from "node:test";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";

const MOST_IMAGE_BYTES = 300_000;

const pages = [
  join(PACKAGE_ROOT, "README.md"),
  ...readdirSync(join(PACKAGE_ROOT, "docs"), { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".md"))
    .map((name) => join(PACKAGE_ROOT, "docs", name)),
];

/** Targets of links and pictures that lie in the repository, without what stands behind "#". */
function targets(page: string): string[] {
  const text = readFileSync(page, "utf8").replaceAll(/```[\s\S]*?```|`[^`\n]*`/g, "");
  const found = [...text.matchAll(/\]\(([^)\s]+)\)|<img [^>]*src="([^"]+)"/g)].map(([, link, image]) => link ?? image!);
  return found.filter((target) => !/^[a-z]+:|^#/.test(target)).map((target) => target.replace(/#.*$/, ""));
}

test("what the documents link to is there", () => {
  const missing = pages.flatMap((page) =>
    targets(page)
      .filter((target) => !existsSync(join(dirname(page), target)))
      .map((target) => `${relative(PACKAGE_ROOT, page)}: ${target}`),
  );
  assert.deepEqual(missing, []);
});

test("pictures are small, and each is shown somewhere", () => {
  const folder = join(PACKAGE_ROOT, "docs", "images");
  const shown = new Set(pages.flatMap((page) => targets(page).map((target) => join(dirname(page), target))));
  for (const name of readdirSync(folder)) {
    const path = join(folder, name);
    assert.ok(statSync(path).size < MOST_IMAGE_BYTES, `${name}: ${statSync(path).size} bytes`);
    assert.ok(shown.has(path), `${name} is shown nowhere`);
  }
});

test("the page's guide names its browser tests", () => {
  const guide = readFileSync(join(PACKAGE_ROOT, "docs", "guide", "page.md"), "utf8");
  for (const name of readdirSync(join(PACKAGE_ROOT, "tests", "browser")).filter((file) => file.endsWith(".test.ts"))) {
    assert.ok(guide.includes(`tests/browser/${name}`), name);
  }
});
