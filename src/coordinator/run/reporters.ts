import type { Logger } from "../../common/log.ts";
import { nodesJson } from "../cluster/node-folders.ts";
import type { Saved } from "./checkpoints/run-files.ts";
import type { LogEntry } from "./checkpoints/trainer-state.ts";
import type { Sample, Shown, StepProgress } from "./reporter.ts";

/** Writes one JSON event a line. `adapter`: the name to add to each event, if there are several adapters. */
export function jsonReporter(write: (line: string) => void, adapter: string | null = null): Shown {
  const whose = adapter === null ? {} : { adapter };
  const event = (name: string, value: object) => write(`${JSON.stringify({ event: name, ...whose, ...value })}\n`);
  return {
    plan: (_text, value) => event("plan", { plan: value }),
    preflight: (_text, value) => event("preflight", { preflight: value }),
    note: (text) => event("note", { text }),
    step: (progress) => event("step", progress),
    log: (entry) => event("log", entry),
    predictions: (_text, value) => event("predictions", value),
    samples: (samples, step) => event("samples", { step, samples }),
    saved: ({ path, nodes, files }, step) =>
      event("save", { path, step, ...(nodes.length > 0 ? { nodes: nodesJson(nodes), files } : {}) }),
    end: (summary) => event("end", summary),
    failed: ({ code, message }) => event("failed", { code, message }),
  };
}

/** Writes plain lines to the log: for files, containers and pino JSON. `adapter`: the name in front of each line, if there are several. */
export function logReporter(log: Logger, adapter: string | null = null): Shown {
  const rate = new TokenRate();
  const own = adapter === null ? log : log.child({ adapter });
  const named = adapter === null ? (text: string) => text : (text: string) => `${adapter}: ${text}`;
  return {
    plan: (text, value) => own.info({ plan: value }, text),
    preflight: (text, value) => own.info({ preflight: value }, text),
    note: (text) => own.info(named(text)),
    step: (progress) => rate.add(progress),
    log: (entry) => own.info(entry, named(`${describe(entry)}${rate.describe()}`)),
    predictions: (text, value) => own.info({ predictions: value }, text),
    samples: (samples, step) => {
      for (const sample of samples) own.info({ step, ...sample }, named(describeSample(sample, step)));
    },
    saved: (saved, step) => own.info({ path: saved.path, step, files: saved.files }, named(describeSave(saved))),
    end: (summary) => own.info(summary, named("training finished")),
    failed: (error) => own.error({ code: error.code }, named(`failed: ${error.code}: ${error.message}`)),
  };
}

/** Shows a progress bar in the last line of a terminal, with log entries above it. */
export function barReporter(out: NodeJS.WriteStream): Shown {
  const rate = new TokenRate();
  let bar = "";
  const line = (text: string) => out.write(`\r\x1b[K${text}\n${bar}`);
  return {
    plan: (text) => line(text),
    preflight: (text) => line(text),
    note: (text) => line(text),
    step: (progress) => {
      rate.add(progress);
      bar = drawBar(progress, rate, out.columns || 100);
      out.write(`\r\x1b[K${bar}`);
    },
    log: (entry) => line(describe(entry)),
    predictions: (text) => line(text),
    samples: (samples, step) => {
      for (const sample of samples) line(describeSample(sample, step));
    },
    saved: (saved) => line(describeSave(saved)),
    end: (summary) => {
      bar = "";
      line(
        `training finished: ${Object.entries(summary)
          .map(([key, value]) => `${key} ${show(value)}`)
          .join(", ")}`,
      );
    },
    failed: ({ code, message }) => line(`${code}: ${message}`),
  };
}

/** Prompt and reply, each on one line. */
function describeSample({ prompt, reply }: Sample, step: number): string {
  return `step ${step}: ${JSON.stringify(prompt)} -> ${JSON.stringify(reply)}`;
}

function describeSave({ path, nodes }: Saved): string {
  const good = nodes.filter(({ error }) => error === null).map(({ node }) => node);
  return nodes.length === 0 ? `saved ${path}` : `saved ${path}, and the same on ${good.join(", ") || "no node"}`;
}

function drawBar(progress: StepProgress, rate: TokenRate, columns: number): string {
  const { step, maxSteps, loss, learningRate, epoch } = progress;
  const numbers = `${step}/${maxSteps} epoch ${epoch.toFixed(2)} loss ${loss.toFixed(4)} lr ${learningRate.toExponential(2)} ${rate.tokensPerSecond().toFixed(0)} tokens/s left ${clock((maxSteps - step) * rate.secondsAStep())}`;
  const width = Math.max(5, Math.min(30, columns - numbers.length - 5));
  const done = Math.round((step / maxSteps) * width);
  return `[${"█".repeat(done)}${"·".repeat(width - done)}] ${numbers}`.slice(0, columns);
}

function describe(entry: LogEntry): string {
  return Object.entries(entry)
    .map(([key, value]) => `${key} ${show(value)}`)
    .join("  ");
}

function show(value: unknown): string {
  if (typeof value !== "number" || Number.isInteger(value)) return String(value);
  return Math.abs(value) < 1e-3 ? value.toExponential(3) : value.toFixed(4);
}

function clock(seconds: number): string {
  const whole = Math.round(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const tail = `${String(minutes).padStart(2, "0")}:${String(whole % 60).padStart(2, "0")}`;
  return hours > 0 ? `${hours}:${tail}` : tail;
}

/** Tokens a second over the last steps. */
class TokenRate {
  readonly #recent: { tokens: number; seconds: number }[] = [];

  add({ tokens, stepMs }: StepProgress): void {
    this.#recent.push({ tokens, seconds: stepMs / 1000 });
    if (this.#recent.length > 20) this.#recent.shift();
  }

  tokensPerSecond(): number {
    return this.#sum("tokens") / Math.max(1e-9, this.#sum("seconds"));
  }

  secondsAStep(): number {
    return this.#sum("seconds") / Math.max(1, this.#recent.length);
  }

  describe(): string {
    return this.#recent.length === 0 ? "" : `  ${this.tokensPerSecond().toFixed(0)} tokens/s`;
  }

  #sum(key: "tokens" | "seconds"): number {
    return this.#recent.reduce((sum, entry) => sum + entry[key], 0);
  }
}
