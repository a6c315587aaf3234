import { stat } from "node:fs/promises";
import { resolve } from "node:path";
import { PipeloraError } from "../../common/errors.ts";
import { exitCodeOfSignal } from "../../common/exit-codes.ts";
import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import { RunFolder } from "../../serve/page/run-folder.ts";
import { Interrupts } from "../cluster/interrupts.ts";
import { type HttpSettings, openHttpApi } from "./http-api.ts";

/** Not serve's: both may run on one machine. */
const DEFAULT_ADDRESS = "127.0.0.1:8001";
const GRACE_MS = 1_000;

/**
 * The `ui` command: serves the page over the runs of an output folder until it is stopped. It only reads files, so the run may belong to
 * another process. Reports once that it is ready. Errors: PL_CONFIG_INVALID where there is no run; those of openHttpApi.
 */
export async function showRuns(
  settings: HttpSettings & Pick<Config, "output_dir" | "http">,
  log: Logger,
  onListening: (url: string) => void,
): Promise<void> {
  const dir = resolve(settings.output_dir!);
  const runs = new RunFolder(dir);
  const found = await stat(dir).catch(() => null);
  const { runs: shown, leftOut } = await runs.list();
  if (shown.length === 0) {
    const what = found === null ? "does not exist" : found.isDirectory() ? "holds no run" : "is no folder";
    throw new PipeloraError("PL_CONFIG_INVALID", `${dir} ${what}`, {
      hint: "Give a run's --output-dir, or a folder of such folders: they hold metrics.jsonl or trainer_state.json.",
    });
  }
  if (leftOut > 0) log.warn(`${shown.length} runs are shown, ${leftOut} more in ${dir} are not`);
  const interrupts = new Interrupts(
    () => {},
    (signal) => process.exit(exitCodeOfSignal(signal)),
  );
  try {
    const address = settings.http ?? DEFAULT_ADDRESS;
    const api = await interrupts.during(openHttpApi(settings, { address, ready: () => true, log, api: null, runs }));
    log.info(`${shown.length === 1 ? "a run" : `${shown.length} runs`} of ${dir}: ${api.url}`);
    onListening(api.url);
    await interrupts.first.catch(() => {});
    await api.close(GRACE_MS);
  } finally {
    interrupts.dispose();
  }
}
