import assert from "node:assert/strict";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import type { Browser } from "playwright-core";
import { writeChainModel } from "../support/models/chain-model.ts";
import { browserMissing, openBrowser, openPage } from "../support/processes/browser.ts";
import { coordinator, outcome, startCoordinator, temporaryFolder } from "../support/processes/cli.ts";
import { lastFirst } from "../support/processes/last-first.ts";
import { freePort } from "../support/processes/ports.ts";
import { startUi } from "../support/processes/ui.ts";

const skip = browserMissing;
/** Of the run that nobody looks at; the other one goes on until all was looked at. */
const STEPS = 100;
let browser: Browser;

before(async () => {
  if (!skip) browser = await openBrowser();
});
after(async () => browser?.close());

/** Four workers, evaluations, checkpoints; `more`: flags. */
async function setUp(root: string) {
  const model = join(root, "model");
  mkdirSync(model);
  await writeChainModel(model, 6);
  const rows = Array.from({ length: 64 }, (_, at) => ({
    messages: [
      { role: "user", content: `say ${at % 5}` },
      { role: "assistant", content: "hg".repeat(2 + (at % 9)) },
    ],
  }));
  const write = (name: string, own: readonly object[]) =>
    writeFileSync(join(root, name), own.map((row) => JSON.stringify(row)).join("\n"));
  write("rows.jsonl", rows);
  write("held-out.jsonl", rows.slice(0, 6));
  return (output: string, ...more: string[]) => [
    ...["train", "--model", model, "--dataset", join(root, "rows.jsonl"), "--output-dir", join(root, output)],
    ...["--eval-dataset", join(root, "held-out.jsonl"), "--eval-strategy", "steps", "--eval-steps", "25"],
    ...["--workers", "4", "--threads", "1", "--per-device-train-batch-size", "4", "--logging-steps", "10"],
    ...["--learning-rate", "0.004", "--lr-scheduler-type", "constant", "--save-steps", String(STEPS)],
    ...["--target-modules", "q_proj,v_proj,up_proj,down_proj", ...more],
  ];
}

test("a run over four workers while it goes: every view, an answer, and the same bits as a run that nobody looks at", {
  skip,
}, async (t) => {
  const own = lastFirst(t);
  const root = temporaryFolder(own);
  const flags = await setUp(root);
  const port = await freePort();
  const child = startCoordinator(flags("seen", "--max-steps", "100000", "--http", `127.0.0.1:${port}`));
  const running = outcome(child);
  own.after(() => child.kill("SIGKILL"));
  const url = `http://127.0.0.1:${port}`;
  await answering(url);

  const page = await openPage(own, browser, `${url}/#/timeline`, { expected: /Failed to load resource/ });
  await page.getByText("running").waitFor({ timeout: 30_000 });
  const steps = page.getByRole("heading", { name: /^Step [\d,]+, rank by rank/ });
  await steps.waitFor({ timeout: 30_000 });
  const first = await steps.textContent();
  await page.waitForFunction((before) => !document.body.textContent.includes(String(before)), first, {
    timeout: 30_000,
  });
  await page.getByRole("application", { name: /^Timeline of 4 ranks/ }).waitFor();

  await page.getByRole("link", { name: "Chat" }).click();
  await page.getByLabel("Message", { exact: true }).fill("say 1");
  await page.keyboard.press("Enter");
  await page.getByText(/^weights after step \d+/).waitFor({ timeout: 30_000 });

  await page.getByRole("link", { name: "Placement" }).click();
  await page.getByText("Upper bar: predicted. Lower bar: measured. Line: budget.").waitFor();
  assert.equal(await page.locator("figure").first().locator(".row").count(), 4);
  await page.getByRole("link", { name: "Nodes and links" }).click();
  await page.getByRole("cell", { name: /\/s$/ }).first().waitFor();
  await page.getByRole("link", { name: "Curves" }).click();
  const chart = page.getByRole("slider", { name: "Loss", exact: true });
  const now = Number(await chart.getAttribute("aria-valuemax"));
  await page.waitForFunction(
    (before) => Number(document.querySelector("[role=slider]")?.getAttribute("aria-valuemax")) > before,
    Math.max(now, STEPS),
    { timeout: 60_000 },
  );

  child.kill("SIGINT");
  const { code, stderr } = await running;
  assert.equal(code, 130, stderr);
  await page.getByText(/^The connection is lost; trying again …/).waitFor();

  const quiet = await coordinator(flags("quiet", "--max-steps", String(STEPS)));
  assert.equal(quiet.code, 0, quiet.stderr);
  const adapter = (run: string) => readFileSync(join(root, run, `checkpoint-${STEPS}`, "adapter_model.safetensors"));
  assert.deepEqual(adapter("seen"), adapter("quiet"));

  const folder = await openPage(own, browser, `${await startUi(own, root)}/#/curves/quiet`);
  await folder.getByText("done", { exact: true }).waitFor();
  await folder.getByRole("slider", { name: "Evaluation loss" }).waitFor();
  for (const [link, what] of [
    ["Timeline", new RegExp(`^Step ${STEPS}, rank by rank`)],
    ["Placement", "Layers by device"],
    ["Checkpoints", `checkpoint-${STEPS}`],
    ["Settings", "learning_rate"],
    ["Log", /saved .*checkpoint-100/],
  ] as const) {
    await folder.getByRole("link", { name: link }).click();
    await folder.getByText(what).first().waitFor();
  }
  await folder.getByRole("combobox", { name: "Run" }).selectOption("seen");
  await folder.getByText("stopped", { exact: true }).waitFor();
});

/** Until the page is served. */
async function answering(url: string): Promise<void> {
  for (let tries = 0; tries < 200; tries++) {
    const response = await fetch(`${url}/page/runs`).catch(() => null);
    if (response?.ok === true) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  assert.fail(`${url} never answered`);
}
