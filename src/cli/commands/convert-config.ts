import { dirname, join } from "node:path";
import { stringify } from "yaml";
import { isFile } from "../../common/files.ts";
import { convertConfig, type DatasetInfo, datasetInfoDir } from "../../config/convert.ts";
import type { Config } from "../../config/options.ts";
import { readYaml } from "../../config/yaml-file.ts";

/** Prints the file's settings under this program's keys. Comments at the top say what is left out and why. */
export async function convertConfigCommand(config: Config): Promise<number> {
  const theirs = await readYaml(config.config!);
  const converted = convertConfig(theirs, await datasetInfo(theirs, config.config!));
  if (config.json) {
    process.stdout.write(`${JSON.stringify(converted)}\n`);
    return 0;
  }
  const comments = converted.remarks.map((remark) => `# ${remark}\n`).join("");
  process.stdout.write(`${comments}${stringify(converted.settings)}`);
  return 0;
}

/** Looked for in the current folder first, as LLaMA-Factory does, then beside the file. */
async function datasetInfo(theirs: Readonly<Record<string, unknown>>, file: string): Promise<DatasetInfo | null> {
  const named = datasetInfoDir(theirs);
  if (named === null) return null;
  for (const dir of [named, join(dirname(file), named), join(dirname(file), "..", named)]) {
    const path = join(dir, "dataset_info.json");
    // JSON is YAML too: it is read by the same parser under the same limits.
    if (await isFile(path)) return { dir, info: await readYaml(path) };
  }
  return null;
}
