import { stringify } from "yaml";
import { convertConfig } from "../../config/convert.ts";
import type { Config } from "../../config/options.ts";
import { readYaml } from "../../config/yaml-file.ts";

/** Prints the file's settings as a file of this program's, with what is left out and why as comments on top. */
export async function convertConfigCommand(config: Config): Promise<number> {
  const converted = convertConfig(await readYaml(config.config!));
  if (config.json) {
    process.stdout.write(`${JSON.stringify(converted)}\n`);
    return 0;
  }
  const comments = converted.remarks.map((remark) => `# ${remark}\n`).join("");
  process.stdout.write(`${comments}${stringify(converted.settings)}`);
  return 0;
}
