import assert from "node:assert/strict";
import { appendFileSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { after, before, type TestContext, test } from "node:test";
import type { Browser, Page } from "playwright-core";
import { browserMissing, openBrowser, openPage } from "../support/processes/browser.ts";
import { temporaryFolder } from "../support/processes/cli.ts";
import { lastFirst } from "../support/processes/last-first.ts";
import { writeRun } from "../support/processes/page-runs.ts";
import { startUi } from "../support/processes/ui.ts";

const VIEWS = ["curves", "placement", "timeline", "nodes", "chat", "log", "checkpoints", "settings"];
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const PHONE = { width: 390, height: 844 };

const skip = browserMissing;
/** What ends with the file, after the browser. */
const ends: (() => unknown)[] = [];
const whole = { after: (end: () => unknown) => void ends.unshift(end) };
let browser: Browser;
let url: string;

/** A run of a hundred thousand steps over 64 ranks, and a sweep beside it. */
before(
  async () => {
    if (skip) return;
    browser = await openBrowser();
    const root = temporaryFolder(whole);
    writeRun(join(root, "large"), { steps: 100_000, ranks: 64, microBatches: 32, settings: { learning_rate: 2e-4 } });
    for (const [at, rate] of [1e-4, 3e-4].entries()) {
      const settings = { learning_rate: rate, output_dir: `x/${at}` };
      writeRun(join(root, "sweep", `rate-${at}`), { steps: 300, ranks: 4, loss: 3 + at, settings, error: null });
    }
    writeRun(join(root, "failed"), {
      ...{ steps: 40, ranks: 2, error: { code: "PL_WORKER_LOST", message: "rank 1 <b>is gone</b>" } },
      ...{ note: "<img src=x onerror=alert(1)>", settings: { system: "</code><script>alert(2)</script>" } },
    });
    url = await startUi(whole, root);
  },
  { timeout: 60_000 },
);

after(async () => {
  await browser?.close();
  for (const end of ends) await end();
});

async function open(
  t: TestContext,
  view: string,
  run: string,
  options: Parameters<typeof openPage>[3] = {},
): Promise<Page> {
  const page = await openPage(t, browser, `${url}/#/${view}/${encodeURIComponent(run)}`, options);
  await page.locator("h2#view").waitFor();
  return page;
}

/** Waits until a view shows what it is for. */
async function shown(page: Page, view: string): Promise<void> {
  await page.locator(`main :is(.canvas, table, .rows, .log li, .nodes, .empty)`).first().waitFor();
  if (view === "timeline") await page.locator("canvas.timeline").waitFor();
}

test("a hundred thousand steps: curves within seconds, every chart with a table, closer looks by dragging", {
  skip,
}, async (t) => {
  const started = performance.now();
  const page = await open(t, "curves", "large");
  const chart = page.getByRole("slider", { name: "Loss", exact: true });
  await chart.waitFor();
  assert.ok(performance.now() - started < 25_000, `${performance.now() - started} ms`);
  const [first, last] = [await chart.getAttribute("aria-valuemin"), await chart.getAttribute("aria-valuemax")];
  assert.ok(Number(first) < 100 && last === "100000", `${first} to ${last}`);
  assert.equal(await page.getByRole("slider").count(), 5);
  const figure = page.locator("figure").first();
  await figure.getByText("As a table").click();
  assert.equal(await figure.getByRole("row").count(), 41);
  const box = (await chart.boundingBox())!;
  await page.mouse.move(box.x + 0.45 * box.width, box.y + 80);
  await page.mouse.down();
  await page.mouse.move(box.x + 0.55 * box.width, box.y + 90, { steps: 4 });
  await page.mouse.up();
  const range = page.getByRole("button", { name: /^Steps [\d,]+ to [\d,]+/ });
  await range.waitFor();
  await page.waitForFunction(() => {
    return Number(document.querySelector("[role=slider]")?.getAttribute("aria-valuemin")) > 30_000;
  });
  await range.click();
  await page.getByRole("button", { name: "Last 1,000" }).click();
  await page.waitForFunction(() => {
    return document.querySelector("[role=slider]")?.getAttribute("aria-valuemin") === "99001";
  });
});

test("64 ranks: placement, timeline and links are shown whole", { skip }, async (t) => {
  const page = await open(t, "placement", "large");
  await page.locator(".row").first().waitFor();
  assert.equal(await page.locator("figure").first().locator(".row").count(), 64);
  await page.getByRole("link", { name: "Timeline" }).click();
  const canvas = page.locator("canvas.timeline");
  await canvas.waitFor();
  assert.ok((await canvas.boundingBox())!.height > 64 * 20);
  const picture = page.getByRole("application", { name: /Timeline of 64 ranks; \d+(\.\d)?% of the time they idle/ });
  const idle = Number(/([\d.]+)%/.exec((await picture.getAttribute("aria-label"))!)![1]);
  // 1F1B's bubble: 63 of 95 slots.
  assert.ok(idle > 55 && idle < 75, `${idle} %`);
  await page.getByRole("link", { name: "Nodes and links" }).click();
  await page.getByRole("table").waitFor();
  assert.equal(await page.locator(".nodes > li").count(), 8);
  assert.equal(await page.getByRole("row").count(), 1 + 126);
});

test("by the keyboard alone: skip link, views, points of a curve, spans of the timeline", { skip }, async (t) => {
  const page = await open(t, "curves", "large");
  const chart = page.getByRole("slider", { name: "Loss", exact: true });
  await chart.waitFor();
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(focused), "Skip to the content");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(focused), "Curves");
  await chart.focus();
  const before = await chart.getAttribute("aria-valuetext");
  await page.keyboard.press("ArrowLeft");
  const then = await chart.getAttribute("aria-valuetext");
  assert.match(then!, /^step [\d,]+: Loss [\d.]+/);
  assert.notEqual(then, before);
  await page.keyboard.press("Home");
  assert.equal(await chart.getAttribute("aria-valuenow"), await chart.getAttribute("aria-valuemin"));

  await page.getByRole("link", { name: "Timeline" }).focus();
  await page.keyboard.press("Enter");
  await page.locator("canvas.timeline").waitFor();
  assert.equal(await page.evaluate(focused), "Timeline");
  await page.getByRole("application").focus();
  const told = page.locator(".told");
  const heard: string[] = [];
  for (const key of ["ArrowDown", "ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft"]) {
    await page.keyboard.press(key);
    heard.push((await told.textContent())!);
  }
  assert.equal(new Set(heard).size, heard.length, heard.join("\n"));
  for (const text of heard) assert.match(text, /^rank \d+, [\w ]+: from [-\d.,e]+ ms, for [\d.]+ ms/);
  assert.equal(await told.getAttribute("aria-live"), "polite");
});

test("no rule of accessibility is broken: every view, light and dark, wide and narrow", { skip }, async (t) => {
  for (const [colorScheme, viewport] of [
    ["light", undefined],
    ["dark", PHONE],
  ] as const) {
    const page = await open(t, "curves", "sweep/rate-0", {
      colorScheme,
      ...(viewport === undefined ? {} : { viewport }),
    });
    await page.evaluate(AXE);
    for (const view of [...VIEWS, "compare"]) {
      await page.evaluate((name) => {
        location.hash = `#/${name}/sweep%2Frate-0`;
      }, view);
      await page.locator(`nav a[aria-current][href*="${view}"]`).waitFor();
      await shown(page, view);
      const found = await page.evaluate(async () => (await (globalThis as unknown as Axe).axe.run()).violations);
      const told = found.map(
        ({ id, nodes }) =>
          `${id}: ${nodes.map(({ html, failureSummary }) => `${html.slice(0, 200)} ${failureSummary}`).join("\n")}`,
      );
      assert.deepEqual(told, [], `${view}, ${colorScheme}`);
      const wide = await page.evaluate(() => document.documentElement.scrollWidth);
      assert.ok(wide <= (viewport?.width ?? 1280), `${view} is ${wide} wide`);
    }
  }
});

test("English and Chinese: as the browser wants, as somebody chooses, and it is kept", { skip }, async (t) => {
  const page = await open(t, "curves", "sweep/rate-0", { locale: "zh-CN" });
  assert.equal(await page.getAttribute("html", "lang"), "zh-CN");
  await page.getByRole("heading", { name: "曲线" }).waitFor();
  await page.getByRole("slider", { name: "学习率" }).waitFor();
  await page.getByLabel("语言").selectOption("en");
  await page.getByRole("heading", { name: "Curves" }).waitFor();
  await page.reload();
  await page.getByRole("heading", { name: "Curves" }).waitFor();
  assert.equal(await page.getAttribute("html", "lang"), "en");
});

test("light and dark: as the system wants, as somebody chooses; nothing moves for those who ask for that", {
  skip,
}, async (t) => {
  const page = await open(t, "curves", "sweep/rate-0", { colorScheme: "dark", reducedMotion: "reduce" });
  const darkness = () =>
    page.evaluate(() => {
      const link = document.querySelector("nav a")!;
      return [getComputedStyle(document.documentElement).backgroundColor, getComputedStyle(link).transitionDuration];
    });
  const [dark, still] = await darkness();
  assert.deepEqual([dark, still], ["rgb(15, 20, 27)", "0s"]);
  await page.getByLabel("Colours").selectOption("light");
  const [light] = await darkness();
  assert.equal(light, "rgb(244, 246, 249)");
  await page.reload();
  await page.locator("h2#view").waitFor();
  assert.equal((await darkness())[0], light);
});

test("runs of a sweep side by side: one picture, one table, and which settings differ", { skip }, async (t) => {
  const page = await openPage(t, browser, url);
  await page.getByRole("heading", { name: "Compare" }).waitFor();
  const chart = page.getByRole("slider", { name: "Loss", exact: true });
  await chart.waitFor();
  const rows = page.locator("table", { hasText: "learning_rate" }).locator("tbody tr");
  await rows.nth(3).waitFor();
  assert.equal(await rows.count(), 4);
  const names = await page.locator("figure").first().locator(".legend li").allTextContents();
  assert.equal(names.length, 4);
  await page.getByLabel("Shown: large").uncheck();
  await page.waitForFunction(() => document.querySelectorAll("figure .legend")[0].children.length === 3);
  await page.locator('[role=slider][aria-label=Loss][aria-valuemax="300"]').waitFor();
  await page.getByRole("button", { name: "sweep/rate-1" }).click();
  await page.getByRole("heading", { name: "Curves" }).waitFor();
  assert.equal(await page.getByRole("combobox", { name: "Run" }).inputValue(), "sweep/rate-1");
});

test("text of a run is text: names, log, settings and errors hold no markup", { skip }, async (t) => {
  const page = await open(t, "log", "failed");
  await page.getByText("<img src=x onerror=alert(1)>").waitFor();
  await page.getByRole("alert").getByText("rank 1 <b>is gone</b>").waitFor();
  await page.getByRole("link", { name: "Settings" }).click();
  await page.getByLabel("Only those that are not the default").uncheck();
  await page.getByText("</code><script>alert(2)</script>").waitFor();
  assert.equal(await page.locator("main script, main img").count(), 0);
});

test("files have nobody who answers, and the page says why", { skip }, async (t) => {
  const page = await open(t, "chat", "large");
  await page.getByText(/^There is nobody to answer: these are files of a run/).waitFor();
  assert.equal(await page.getByRole("textbox").count(), 0);
});

test("a run that another process goes on with is followed as it goes", { skip }, async (t) => {
  const root = temporaryFolder(t);
  writeRun(root, { steps: 12, ranks: 2, error: null });
  const own = lastFirst(t);
  const page = await openPage(own, browser, await startUi(own, root));
  await page.getByText("running").waitFor();
  const chart = page.getByRole("slider", { name: "Loss", exact: true });
  for (let step = 13; step <= 15; step++) {
    const event = { event: "step", step, max_steps: 24, loss: 1, tokens: 5, step_ms: 5, time: Date.now() / 1000 };
    appendFileSync(join(root, "metrics.jsonl"), `${JSON.stringify(event)}\n`);
    await page.locator(`[role=slider][aria-valuemax="${step}"]`).first().waitFor();
  }
  appendFileSync(join(root, "run.jsonl"), `${JSON.stringify({ event: "line", level: "warn", text: "a late word" })}\n`);
  await page.getByRole("link", { name: "Log" }).click();
  await page.getByText("a late word").waitFor();
  assert.equal(await chart.count(), 0);
});

test("a server with a key: it is asked for, a wrong one is refused, the right one is kept", { skip }, async (t) => {
  const root = temporaryFolder(t);
  writeRun(root, { steps: 12, ranks: 2 });
  const own = lastFirst(t);
  const locked = await startUi(own, root, "--api-key", "k-right");
  const page = await openPage(own, browser, locked, { expected: /401/ });
  const key = page.getByLabel("API key");
  await key.fill("k-wrong");
  await page.keyboard.press("Enter");
  await page.getByText("That is not the key.").waitFor();
  await key.fill("k-right");
  await page.getByRole("button", { name: "Continue" }).click();
  await page.getByRole("slider", { name: "Loss", exact: true }).waitFor();
  await page.reload();
  await page.getByRole("slider", { name: "Loss", exact: true }).waitFor();
});

interface Axe {
  readonly axe: {
    run(): Promise<{ violations: { id: string; nodes: { html: string; failureSummary: string }[] }[] }>;
  };
}

/** The text of what has the focus. */
function focused(): string {
  return document.activeElement!.textContent.trim();
}
