import { createInterface } from "node:readline/promises";
import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import { makeCertificates } from "../../coordinator/cluster/certificates.ts";
import { addTokens } from "../../coordinator/tools/add-tokens.ts";
import { exportGguf } from "../../coordinator/tools/gguf/export.ts";
import { initModel } from "../../coordinator/tools/init-model.ts";
import { mergeAdapter } from "../../coordinator/tools/merge.ts";
import { quantizeModel } from "../../coordinator/tools/quantize.ts";
import { tokenizeFile } from "../../coordinator/tools/tokenize.ts";

export async function initModelCommand(config: Config): Promise<number> {
  const { files, parameters } = await initModel(config);
  print(config, { files, parameters }, `${parameters.toLocaleString("en-US")} parameters in ${files.join(", ")}`);
  return 0;
}

export async function mergeCommand(config: Config, log: Logger): Promise<number> {
  const { files, merged, warnings } = await mergeAdapter(config, log, (dir) => mayOverwrite(config, dir));
  for (const warning of warnings) log.warn(warning);
  const what = merged === null ? "placed files in" : `merged ${merged} layers into`;
  print(config, { files, merged }, `${what} ${config.output_dir}: ${files.join(", ")}`);
  return 0;
}

/** Asks for confirmation on a terminal. Without a terminal only --yes confirms. */
async function mayOverwrite(config: Config, dir: string): Promise<boolean> {
  if (config.yes) return true;
  if (config.json || !process.stdin.isTTY || !process.stderr.isTTY) return false;
  const lines = createInterface({ input: process.stdin, output: process.stderr });
  try {
    const answer = await lines.question(
      `${dir} is the base model's own folder: overwrite it with the merged model? [y/N] `,
    );
    return /^y(es)?$/i.test(answer.trim());
  } finally {
    lines.close();
  }
}

export async function exportCommand(config: Config, log: Logger): Promise<number> {
  const { warnings, ...made } = await exportGguf(config, log);
  for (const warning of warnings) log.warn(warning);
  print(
    config,
    made,
    `${made.tensors} tensors for llama.cpp's ${made.architecture} in ${config.output_dir}: ${made.files.join(", ")}`,
  );
  return 0;
}

export async function quantizeCommand(config: Config, log: Logger): Promise<number> {
  const { files, quantized, warnings } = await quantizeModel(config, log);
  for (const warning of warnings) log.warn(warning);
  print(config, { files, quantized }, `quantised ${quantized} layers into ${config.output_dir}: ${files.join(", ")}`);
  return 0;
}

export async function addTokensCommand(config: Config, log: Logger): Promise<number> {
  const { warnings, ...made } = await addTokens(config, log);
  for (const warning of warnings) log.warn(warning);
  const [before, after] = made.rows;
  const grown =
    before === after ? `in the embedding's ${after} rows` : `the embedding grew from ${before} rows to ${after}`;
  const ids = Object.entries(made.ids).map(([token, id]) => `${id} ${JSON.stringify(token)}`);
  print(config, made, `${ids.join("\n")}\n${grown}; wrote to ${config.output_dir}: ${made.files.join(", ")}`);
  return 0;
}

export async function certsCommand(config: Config): Promise<number> {
  const files = await makeCertificates(config);
  print(config, { files }, `wrote to ${config.output_dir}: ${files.join(", ")}; ca.key signs: keep it off the nodes`);
  return 0;
}

/** Prints one JSON line a row, with --json or without: programs read this output. */
export async function tokenizeCommand(config: Config, log: Logger): Promise<number> {
  for await (const row of tokenizeFile(config, log)) process.stdout.write(`${JSON.stringify(row)}\n`);
  return 0;
}

function print(config: Config, value: object, text: string): void {
  process.stdout.write(config.json ? `${JSON.stringify(value)}\n` : `${text}\n`);
}
