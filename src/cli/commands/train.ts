import { join } from "node:path";
import { Registry } from "prom-client";
import type { Logger } from "../../common/log.ts";
import { ensureWritable } from "../../common/output-dir.ts";
import { type Config, withoutSecrets } from "../../config/options.ts";
import { MetricsFile } from "../../coordinator/run/observers/metrics-file.ts";
import { MlflowObserver, mlflowSettings } from "../../coordinator/run/observers/mlflow.ts";
import { type Observer, withObservers } from "../../coordinator/run/observers/observer.ts";
import { PrometheusObserver } from "../../coordinator/run/observers/prometheus.ts";
import { TensorboardObserver } from "../../coordinator/run/observers/tensorboard.ts";
import type { Reporter } from "../../coordinator/run/reporter.ts";
import { barReporter, jsonReporter, logReporter } from "../../coordinator/run/reporters.ts";
import { train } from "../../coordinator/run/train.ts";

export async function trainCommand(config: Config, log: Logger): Promise<number> {
  const registry = new Registry();
  const observers = await openObservers(config, registry, log);
  let error: unknown = null;
  try {
    await train(config, log, withObservers(chooseReporter(config, log), observers), registry);
    return 0;
  } catch (thrown) {
    error = thrown;
    throw thrown;
  } finally {
    for (const observer of observers) await observer.close(error);
  }
}

async function openObservers(config: Config, registry: Registry, log: Logger): Promise<Observer[]> {
  const warn = (text: string) => log.warn(text);
  const outputDir = await ensureWritable(config.output_dir!);
  const wanted: readonly string[] = [config.report_to].flat();
  const events = config.logging_dir ?? join(outputDir, "runs");
  return [
    new MetricsFile(outputDir, warn),
    new PrometheusObserver(registry),
    ...(wanted.includes("tensorboard") ? [await TensorboardObserver.open(events, warn)] : []),
    // Last: a run that was opened there is to be ended.
    ...(wanted.includes("mlflow")
      ? [await MlflowObserver.open(mlflowSettings(outputDir), withoutSecrets(config), warn)]
      : []),
  ];
}

function chooseReporter(config: Config, log: Logger): Reporter {
  if (config.json) return jsonReporter((line) => process.stdout.write(line));
  const terminal = process.stderr.isTTY === true && config.log_format === "text";
  return terminal && !config.disable_tqdm ? barReporter(process.stderr) : logReporter(log);
}
