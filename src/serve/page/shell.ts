import { createHash } from "node:crypto";
import { readdir, readFile } from "node:fs/promises";
import { extname, join } from "node:path";
import type { FastifyInstance } from "fastify";
import { PipeloraError } from "../../common/errors.ts";
import { PACKAGE_ROOT } from "../../common/root.ts";

/** What `npm run build` makes of web/. */
const BUILT = join(PACKAGE_ROOT, "dist", "web");
const INDEX = "index.html";
const TYPES: Readonly<Record<string, string>> = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".svg": "image/svg+xml",
};

/** Only this server's own files may run, be shown or be requested; no page may frame it; no cache keeps a run's data. */
export const SHELL_HEADERS = {
  "content-security-policy": [
    ...["default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'"],
    ...["base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"],
  ].join("; "),
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
  "cache-control": "no-store",
} as const;

/**
 * Serves the built page's files, each read once and served under its own name, so no path of a client is ever opened. They hold nothing of
 * a run and need no key: the page asks for it. Error: PL_INTERNAL if they are not built.
 */
export async function openShell(app: FastifyInstance): Promise<void> {
  const names = await readdir(BUILT).catch(() => [] as string[]);
  if (!names.includes(INDEX)) {
    throw new PipeloraError("PL_INTERNAL", `${BUILT} has no ${INDEX}`, { hint: "Build the page: npm run build." });
  }
  for (const name of names) {
    const type = TYPES[extname(name)];
    if (type === undefined) continue;
    const content = await readFile(join(BUILT, name));
    const etag = `"${createHash("sha256").update(content).digest("base64url")}"`;
    app.get(name === INDEX ? "/" : `/${name}`, { config: { open: true } }, (request, reply) => {
      reply.headers({ etag, "cache-control": "no-cache" });
      if (request.headers["if-none-match"] === etag) return reply.code(304).send();
      return reply.type(type).send(content);
    });
  }
}
