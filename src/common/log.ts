import { type DestinationStream, type Logger, type LoggerOptions, pino } from "pino";
import pretty from "pino-pretty";

export type { Logger };

export interface LogOptions {
  readonly format: "text" | "json";
  readonly level: "debug" | "info" | "warn" | "error" | "silent";
  /** Fields on every line, e.g. {rank: 1}. */
  readonly fields?: Readonly<Record<string, unknown>>;
  /** Text in front of every line of the text format, e.g. "[rank 1] ". */
  readonly prefix?: string;
}

/** A line of the log, at a level that is shown. */
export interface HeardLine {
  readonly level: "debug" | "info" | "warn" | "error";
  readonly text: string;
}

/** The listener of each logger that createLogger made. */
const listeners = new WeakMap<Logger, Set<(line: HeardLine) => void>>();
/** For a logger without a listener. Its children inherit this. */
const UNHEARD = Symbol("unheard");

/** From now on `hear` gets every line of this logger and of its children, except those that unheardChild made. */
export function hearLog(log: Logger, hear: (line: HeardLine) => void): void {
  listeners.get(log)?.add(hear);
}

/** A child logger whose lines are shown but not passed to the listener, which learns of these events in another way. */
export function unheardChild(log: Logger): Logger {
  return Object.assign(log.child({}), { [UNHEARD]: true });
}

/**
 * Logs go to stderr: stdout belongs to results. Written synchronously, so nothing is lost when the process ends.
 */
export function createLogger(options: LogOptions): Logger {
  const destination: DestinationStream =
    options.format === "json"
      ? pino.destination({ dest: 2, sync: true })
      : pretty({
          colorize: process.stderr.isTTY === true,
          destination: 2,
          sync: true,
          hideObject: true,
          ignore: "pid,hostname,time",
          messageFormat: `${options.prefix ?? ""}{msg}`,
        });
  const heard = new Set<(line: HeardLine) => void>();
  const hooks: LoggerOptions["hooks"] = {
    logMethod(args, method, level) {
      method.apply(this, args);
      if (heard.size === 0 || UNHEARD in this) return;
      const text = args.find((arg) => typeof arg === "string");
      const name = (["debug", "info", "warn", "error"] as const)[level / 10 - 2] ?? "error";
      if (text !== undefined) for (const hear of heard) hear({ level: name, text });
    },
  };
  const log = pino({ level: options.level, base: options.fields ?? {}, hooks }, destination);
  listeners.set(log, heard);
  return log;
}
