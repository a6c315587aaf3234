import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import { download } from "../../coordinator/tools/download.ts";

/** Prints the folder. */
export async function downloadCommand(config: Config, log: Logger): Promise<number> {
  const found = await download(config, log);
  process.stdout.write(config.json ? `${JSON.stringify(found)}\n` : `${found.dir}\n`);
  return 0;
}
