import { join } from "node:path";
import { stringify } from "yaml";
import { PipeloraError } from "../../common/errors.ts";
import type { Logger } from "../../common/log.ts";
import { ensureWritable } from "../../common/output-dir.ts";
import { adapterConfigs } from "../../config/adapters.ts";
import type { Config } from "../../config/options.ts";
import { formatRanking, type RankedAdapter, rankAdapters } from "../../coordinator/run/sweep-ranking.ts";
import { writeTextAtomically } from "../../formats/atomic-file.ts";
import { trainCommand } from "./train.ts";

/** Writes the grid as a file for --adapters, trains it, and ranks the results. */
export async function sweepCommand(config: Config, log: Logger): Promise<number> {
  const outputDir = await ensureWritable(config.output_dir!);
  const file = join(outputDir, "sweep.yaml");
  const settings = config.adapters!;
  await writeTextAtomically(file, stringify(settings));
  const adapters = adapterConfigs("train", config).map(({ name, config: own }) => {
    return { name: name!, dir: own.output_dir!, settings: settings[name!] ?? {} };
  });
  log.info(`${adapters.length} adapters: ${file}`);
  if (config.dry_run) {
    const planned = adapters.map(({ name }) => name);
    process.stdout.write(config.json ? `${JSON.stringify({ adapters: file, names: planned })}\n` : `${file}\n`);
    return 0;
  }
  let failure: unknown = null;
  try {
    await trainCommand(config, log);
  } catch (error) {
    // Some are done all the same.
    if (!(error instanceof PipeloraError) || error.code !== "PL_ADAPTERS_FAILED") throw error;
    failure = error;
  }
  await tell(await rankAdapters(adapters), outputDir, config);
  if (failure !== null) throw failure;
  return 0;
}

async function tell(
  ranked: readonly RankedAdapter[],
  outputDir: string,
  { json }: Pick<Config, "json">,
): Promise<void> {
  const table = formatRanking(ranked);
  await writeTextAtomically(join(outputDir, "sweep.json"), `${JSON.stringify({ ranking: ranked }, null, 2)}\n`);
  await writeTextAtomically(join(outputDir, "sweep.txt"), `${table}\n`);
  process.stdout.write(json ? `${JSON.stringify({ event: "ranking", ranking: ranked })}\n` : `${table}\n`);
}
