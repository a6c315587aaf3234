import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import { showRuns } from "../../coordinator/serving/ui.ts";

/** Shows runs until it is stopped; with --json its URL is the one line on stdout. */
export async function uiCommand(config: Config, log: Logger): Promise<number> {
  await showRuns(config, log, (url) => {
    if (config.json) process.stdout.write(`${JSON.stringify({ url })}\n`);
  });
  return 0;
}
