import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import { heldParameters } from "../../coordinator/planning/held-parameters.ts";
import { setUpModel } from "../../coordinator/planning/model-setup.ts";

/** Lists parameters as the tutorial's notebook prints them: name, shape, dtype; then the trainable count. */
export async function parametersCommand(config: Config, log: Logger): Promise<number> {
  const setup = await setUpModel(config, log, { weights: false, lora: true });
  for (const warning of setup.warnings) log.warn(warning);
  const { parameters, trainable, total, active } = heldParameters(setup);
  if (config.json) {
    const rows = parameters.map(({ name, shape, dtype }) => ({ name, shape, dtype }));
    process.stdout.write(`${JSON.stringify({ parameters: rows, trainable, total, active })}\n`);
    return 0;
  }
  const lines = parameters.map(
    ({ name, shape, dtype, trainable: learns }) =>
      `${name}  [${shape.join(", ")}]  ${dtype}${learns ? "  trainable" : ""}`,
  );
  const grouped = (value: number) => value.toLocaleString("en-US");
  const share = ((100 * trainable) / total).toFixed(4);
  lines.push(`trainable params: ${grouped(trainable)} || all params: ${grouped(total)} || trainable%: ${share}`);
  if (active !== total) lines.push(`active params a token: ${grouped(active)}`);
  process.stdout.write(`${lines.join("\n")}\n`);
  return 0;
}
