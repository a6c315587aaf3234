import { join } from "node:path";
import { Registry } from "prom-client";
import { type PipeloraError, toPipeloraError } from "../../common/errors.ts";
import type { Logger } from "../../common/log.ts";
import { ensureWritable } from "../../common/output-dir.ts";
import { adapterConfigs } from "../../config/adapters.ts";
import { type Config, withoutSecrets } from "../../config/options.ts";
import { MetricsFile } from "../../coordinator/run/observers/metrics-file.ts";
import { MlflowObserver, mlflowSettings } from "../../coordinator/run/observers/mlflow.ts";
import { type Observer, withObservers } from "../../coordinator/run/observers/observer.ts";
import { PrometheusObserver } from "../../coordinator/run/observers/prometheus.ts";
import { TensorboardObserver } from "../../coordinator/run/observers/tensorboard.ts";
import type { Reporter } from "../../coordinator/run/reporter.ts";
import { barReporter, jsonReporter, logReporter } from "../../coordinator/run/reporters.ts";
import { type AdapterToTrain, train } from "../../coordinator/run/train.ts";

export async function trainCommand(config: Config, log: Logger): Promise<number> {
  const registry = new Registry();
  const shown = chooseReporter(config, log);
  const adapters: (AdapterToTrain & { readonly observers: readonly Observer[]; error: PipeloraError | null })[] = [];
  let ended: unknown = null;
  try {
    for (const { name, config: own } of adapterConfigs("train", config)) {
      const observers = await openObservers(own, registry, log);
      const failed = (error: PipeloraError) => {
        adapter.error = error;
      };
      const reporter = withObservers(name === null ? shown : chooseReporter(config, log, name), [
        ...observers,
        { failed, close: async () => {} },
      ]);
      const adapter = { name, config: own, reporter, observers, error: null as PipeloraError | null };
      adapters.push(adapter);
    }
    await train(config, adapters, {
      log,
      reporter: adapters[0]!.name === null ? adapters[0]!.reporter : shown,
      registry,
    });
    return 0;
  } catch (thrown) {
    ended = thrown;
    throw thrown;
  } finally {
    // Of several adapters those that are done did not fail with the others.
    const ofRun = toPipeloraError(ended);
    for (const { observers, error } of adapters) {
      const own = error ?? (ended === null || ofRun.code === "PL_ADAPTERS_FAILED" ? null : ended);
      for (const observer of observers) await observer.close(own);
    }
  }
}

async function openObservers(config: Config, registry: Registry, log: Logger): Promise<Observer[]> {
  const warn = (text: string) => log.warn(text);
  const outputDir = await ensureWritable(config.output_dir!);
  const wanted: readonly string[] = [config.report_to].flat();
  const events = config.logging_dir ?? join(outputDir, "runs");
  return [
    new MetricsFile(outputDir, warn),
    ...(config.http === null ? [] : [new PrometheusObserver(registry)]),
    ...(wanted.includes("tensorboard") ? [await TensorboardObserver.open(events, warn)] : []),
    // Last: a run that was opened there is to be ended.
    ...(wanted.includes("mlflow")
      ? [await MlflowObserver.open(mlflowSettings(outputDir), withoutSecrets(config), warn)]
      : []),
  ];
}

function chooseReporter(config: Config, log: Logger, adapter: string | null = null): Reporter {
  if (config.json) return jsonReporter((line) => process.stdout.write(line), adapter);
  const terminal = process.stderr.isTTY === true && config.log_format === "text";
  // A bar is of one adapter.
  const bar = terminal && !config.disable_tqdm && config.adapters === null;
  return bar ? barReporter(process.stderr) : logReporter(log, adapter);
}
