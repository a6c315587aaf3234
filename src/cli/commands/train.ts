import { join, resolve } from "node:path";
import { Registry } from "prom-client";
import { hearLog, type Logger, unheardChild } from "../../common/log.ts";
import { ensureWritable } from "../../common/output-dir.ts";
import { type Config, withoutSecrets } from "../../config/options.ts";
import type { HttpShows } from "../../coordinator/run/live-replies.ts";
import { JournalFile } from "../../coordinator/run/observers/journal-file.ts";
import { LiveRun } from "../../coordinator/run/observers/live-run.ts";
import { MetricsFile } from "../../coordinator/run/observers/metrics-file.ts";
import { MlflowObserver, mlflowSettings } from "../../coordinator/run/observers/mlflow.ts";
import { type Observer, withObservers } from "../../coordinator/run/observers/observer.ts";
import { PrometheusObserver } from "../../coordinator/run/observers/prometheus.ts";
import { TensorboardObserver } from "../../coordinator/run/observers/tensorboard.ts";
import type { Shown } from "../../coordinator/run/reporter.ts";
import { barReporter, jsonReporter, logReporter } from "../../coordinator/run/reporters.ts";
import { train } from "../../coordinator/run/train.ts";

export async function trainCommand(config: Config, log: Logger): Promise<number> {
  const registry = new Registry();
  const live = config.http === null ? null : await LiveRun.open(resolve(config.output_dir!), resumes(config));
  const observers = await openObservers(config, { registry, live }, log);
  let error: unknown = null;
  try {
    await train(config, log, withObservers(chooseReporter(config, log), observers), { registry, live });
    return 0;
  } catch (thrown) {
    error = thrown;
    throw thrown;
  } finally {
    for (const observer of observers) await observer.close(error);
  }
}

async function openObservers(config: Config, { registry, live }: HttpShows, log: Logger): Promise<Observer[]> {
  const warn = (text: string) => log.warn(text);
  const outputDir = await ensureWritable(config.output_dir!);
  const wanted: readonly string[] = [config.report_to].flat();
  const events = config.logging_dir ?? join(outputDir, "runs");
  const journal = new JournalFile(outputDir, warn);
  hearLog(log, (line) => {
    journal.line(line);
    live?.line(line);
  });
  return [
    new MetricsFile(outputDir, warn),
    // After the metrics: it says how the run ended.
    journal,
    ...(live === null ? [] : [live]),
    new PrometheusObserver(registry),
    ...(wanted.includes("tensorboard") ? [await TensorboardObserver.open(events, warn)] : []),
    // Last: a run that was opened there is to be ended.
    ...(wanted.includes("mlflow")
      ? [await MlflowObserver.open(mlflowSettings(outputDir), withoutSecrets(config), warn)]
      : []),
  ];
}

function resumes({ resume_from_checkpoint: from }: Config): boolean {
  return from !== null && from !== false;
}

function chooseReporter(config: Config, log: Logger): Shown {
  if (config.json) return jsonReporter((line) => process.stdout.write(line));
  const terminal = process.stderr.isTTY === true && config.log_format === "text";
  return terminal && !config.disable_tqdm ? barReporter(process.stderr) : logReporter(unheardChild(log));
}
