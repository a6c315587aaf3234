import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { type Browser, type BrowserContextOptions, chromium, type Page } from "playwright-core";

const CHROMIUM = process.env["PIPELORA_CHROMIUM"] ?? "/usr/bin/chromium";

/** Why the page can't be tried here; false: it can. */
export const browserMissing: string | false = existsSync(CHROMIUM)
  ? false
  : `${CHROMIUM} is not there: install Debian's chromium, or name another in $PIPELORA_CHROMIUM`;

export async function openBrowser(): Promise<Browser> {
  // In containers root has no sandbox of its own, and shared memory is small; nothing but our own page is opened.
  return chromium.launch({
    executablePath: CHROMIUM,
    args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--lang=en-US"],
  });
}

/** A page of its own profile. When the test is over, it must have asked no other server and broken no rule that the server set. */
export async function openPage(
  t: { after(end: () => unknown): void },
  browser: Browser,
  url: string,
  { expected = /^$/, ...options }: BrowserContextOptions & { readonly expected?: RegExp } = {},
): Promise<Page> {
  const context = await browser.newContext({ locale: "en-US", viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  const faults: string[] = [];
  page.on("console", (message) => {
    if (message.type() === "error" && !expected.test(message.text())) faults.push(message.text());
  });
  page.on("pageerror", (error) => faults.push(error.stack ?? error.message));
  page.on("dialog", (dialog) => faults.push(`a dialog: ${dialog.message()}`));
  page.on("request", (request) => {
    if (new URL(request.url()).origin !== new URL(url).origin) faults.push(`asked ${request.url()}`);
  });
  t.after(async () => {
    await context.close();
    assert.deepEqual(faults, []);
  });
  await page.goto(url);
  return page;
}
