import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import { download } from "../../coordinator/tools/download.ts";
import { pushAdapter } from "../../coordinator/tools/push.ts";

/** Prints the folder. */
export async function downloadCommand(config: Config, log: Logger): Promise<number> {
  const found = await download(config, log);
  process.stdout.write(config.json ? `${JSON.stringify(found)}\n` : `${found.dir}\n`);
  return 0;
}

/** Prints where it is. */
export async function pushCommand(config: Config): Promise<number> {
  const pushed = await pushAdapter(config);
  process.stdout.write(config.json ? `${JSON.stringify(pushed)}\n` : `${pushed.url} at ${pushed.commit}\n`);
  return 0;
}
