import { join } from "node:path";
import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import type { Reporter } from "../../coordinator/run/reporter.ts";
import { barReporter, jsonReporter, logReporter } from "../../coordinator/run/reporters.ts";
import { TensorboardReporter } from "../../coordinator/run/tensorboard-reporter.ts";
import { train } from "../../coordinator/run/train.ts";

export async function trainCommand(config: Config, log: Logger): Promise<number> {
  const shown = chooseReporter(config, log);
  if (![config.report_to].flat().includes("tensorboard")) {
    await train(config, log, shown);
    return 0;
  }
  const reporter = await TensorboardReporter.open(shown, config.logging_dir ?? join(config.output_dir!, "runs"));
  try {
    await train(config, log, reporter);
    return 0;
  } finally {
    await reporter.close();
  }
}

function chooseReporter(config: Config, log: Logger): Reporter {
  if (config.json) return jsonReporter((line) => process.stdout.write(line));
  const terminal = process.stderr.isTTY === true && config.log_format === "text";
  return terminal && !config.disable_tqdm ? barReporter(process.stderr) : logReporter(log);
}
