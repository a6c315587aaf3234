import type { FastifyPluginAsync, FastifyReply } from "fastify";
import { splitAddress } from "../../common/address.ts";
import { PACKAGE_VERSION } from "../../common/root.ts";
import { ApiError } from "../openai/errors.ts";
import { runName } from "./folder-run.ts";
import { LiveStreams } from "./live-streams.ts";
import type { RunFolder } from "./run-folder.ts";
import type { RunSource } from "./run-source.ts";
import { summaryOf, viewOf } from "./run-view.ts";
import { openShell, SHELL_HEADERS } from "./shell.ts";
import { timelineOf } from "./timeline.ts";
import type { LogPage, Replies, RunList, RunView, Series, TimelineAnswer } from "./wire.ts";

/** As many as a wide screen has pixels, twice. */
const MOST_POINTS = 5_000;
const USUAL_POINTS = 1_500;
const MOST_LINES = 1_000;
const MOST_EVALUATIONS = 2_000;
const MOST_REPLIES = 100;
const LOOPBACK_NAMES = /^(localhost|.*\.localhost|127(\.\d{1,3}){3}|::1)$/i;

export interface PageOptions {
  readonly folder: RunFolder;
  /** Whether /v1 answers here. */
  readonly chat: boolean;
  /** Only this machine reaches the server, and no key is required. */
  readonly trustsMachine: boolean;
}

const ofRun = { type: "object", properties: { run: { type: "string", maxLength: 4096 } }, required: ["run"] } as const;
const whole = { type: "integer", minimum: 0, maximum: Number.MAX_SAFE_INTEGER } as const;
const withNumbers = (...names: string[]) => ({
  ...ofRun,
  properties: { ...ofRun.properties, ...Object.fromEntries(names.map((name) => [name, whole])) },
});

/** Settings that differ in all runs and say nothing. */
const OWN = ["output_dir", "template_date"];

interface OfRun {
  readonly run: string;
}
type Numbers<K extends string> = OfRun & Partial<Record<K, number>>;

/** The page at /, and its requests below /page: JSON and server-sent events. See wire.ts. */
export function runsPage({ folder, chat, trustsMachine }: PageOptions): FastifyPluginAsync {
  return async (app) => {
    const streams = new LiveStreams();
    app.addHook("preClose", async () => streams.end());
    app.addHook("onRequest", async (request, reply) => {
      reply.headers(SHELL_HEADERS);
      // Refuses foreign host names: the browser would let in a page of another site whose name was made to resolve to this address.
      if (trustsMachine && !LOOPBACK_NAMES.test(splitAddress(request.headers.host ?? "").host)) {
        throw new ApiError(403, `This server answers to names of this machine, not to ${request.headers.host}.`, {
          code: "unknown_host",
        });
      }
    });
    await openShell(app);

    const asked = async ({ run: id }: OfRun): Promise<RunSource> => {
      const run = await folder.find(id);
      if (run === undefined) throw new ApiError(404, `There is no run "${id}" here.`, { param: "run", code: "no_run" });
      await run.refresh();
      return run;
    };
    const get = <Q extends OfRun>(
      url: string,
      querystring: object,
      answer: (run: RunSource, query: Q, reply: FastifyReply) => unknown,
    ) =>
      app.get(url, { schema: { querystring } }, async (request, reply) => {
        const query = request.query as Q;
        return answer(await asked(query), query, reply);
      });

    app.get("/page/runs", async (): Promise<RunList> => {
      const { runs, leftOut } = await folder.list();
      await Promise.all(runs.map((run) => run.refresh()));
      const now = Date.now();
      const summaries = runs.map((run) => summaryOf(run, now));
      const name = runName({ id: "", dir: folder.dir });
      return {
        ...{ folder: name, version: PACKAGE_VERSION, runs: summaries, leftOut },
        ...{ differing: differing(runs), chat },
      };
    });
    get("/page/run", ofRun, (run): Promise<RunView> => viewOf(run, Date.now()));
    get(
      "/page/series",
      withNumbers("from", "to", "points"),
      (run, query: Numbers<"from" | "to" | "points">): Series => {
        const { columns, evaluations } = run.record;
        const { from = 0, to = Number.MAX_SAFE_INTEGER, points = USUAL_POINTS } = query;
        return {
          points: columns.between(from, to, Math.min(points, MOST_POINTS)),
          evaluations: evenly(
            evaluations.filter(({ step }) => step >= from && step <= to),
            MOST_EVALUATIONS,
          ),
          ...{ firstStep: columns.firstStep, lastStep: columns.lastStep },
          cursor: { generation: columns.generation, rows: columns.length },
        };
      },
    );
    get("/page/timeline", ofRun, (run): TimelineAnswer => {
      const often = run.looked();
      return { timeline: timelineOf(run.record.lastStep), often };
    });
    get("/page/log", withNumbers("before", "lines"), (run, query: Numbers<"before" | "lines">): LogPage => {
      const { before = Number.MAX_SAFE_INTEGER, lines = 500 } = query;
      return run.record.log.page(before, Math.min(lines, MOST_LINES));
    });
    get("/page/replies", ofRun, ({ record: { replies, replyCount } }): Replies => {
      const told = replies.slice(-MOST_REPLIES);
      return { replies: told, leftOut: replyCount - told.length };
    });
    get("/page/live", withNumbers("generation", "rows"), (run, query: Numbers<"generation" | "rows">, reply) => {
      if (streams.full) {
        throw new ApiError(503, "As many pages as may are open already.", { code: "too_many_pages", retryAfterS: 30 });
      }
      reply.hijack();
      reply.raw.writeHead(200, {
        ...SHELL_HEADERS,
        "content-type": "text/event-stream; charset=utf-8",
        // Proxies that would collect events.
        "x-accel-buffering": "no",
      });
      const { generation = -1, rows = 0 } = query;
      streams.add(run, reply.raw, { generation, rows });
      return reply;
    });
  };
}

/** Settings in which runs with steps differ; "" where a run reports none, or has no steps. */
function differing(runs: readonly RunSource[]): Record<string, string[]> {
  const stepped = runs.map(({ record }) => record.columns.length > 0);
  const each = runs.map(
    ({ record }, run) => new Map(stepped[run] ? record.settings.map(({ name, value }) => [name, value]) : []),
  );
  const names = new Set(each.flatMap((settings) => [...settings.keys()]));
  for (const name of OWN) names.delete(name);
  const values = [...names].map((name) => [name, each.map((settings) => settings.get(name) ?? "")] as const);
  return Object.fromEntries(values.filter(([, own]) => new Set(own.filter((_, run) => stepped[run])).size > 1));
}

/** At most so many, the last among them. */
function evenly<T>(values: readonly T[], most: number): T[] {
  if (values.length <= most) return [...values];
  return Array.from({ length: most }, (_, at) => values[Math.floor(((at + 1) * values.length) / most) - 1]!);
}
