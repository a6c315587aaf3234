import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import { serve } from "../../coordinator/serving/serve.ts";

/** Answers until it is stopped; with --json its URL is the one line on stdout. */
export async function serveCommand(config: Config, log: Logger): Promise<number> {
  await serve(config, log, (url) => {
    if (config.json) process.stdout.write(`${JSON.stringify({ url })}\n`);
  });
  return 0;
}
