import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { errorsTable } from "../../../src/common/errors.ts";
import { exitCodesTable } from "../../../src/common/exit-codes.ts";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import { flagsTable } from "../../../src/config/help.ts";
import { cataloguePage } from "../../../src/plan/paper/catalogue.ts";

const page = (name: string) => readFileSync(join(PACKAGE_ROOT, "docs", "reference", name), "utf8");

test("the flags' page is the one the schema makes (npm run docs)", () => {
  assert.equal(page("flags.md"), flagsTable());
});

test("the errors' page is the one the catalogue makes (npm run docs)", () => {
  assert.equal(page("errors.md"), errorsTable());
});

test("the exit codes' page is the one the codes make (npm run docs)", () => {
  assert.equal(page("exit-codes.md"), exitCodesTable());
});

test("the GPUs' page is the one the catalogue makes (npm run docs)", () => {
  assert.equal(page("gpus.md"), cataloguePage());
});
