import { type DestinationStream, type Logger, pino } from "pino";
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
  return pino({ level: options.level, base: options.fields ?? {} }, destination);
}
