import { join, resolve } from "node:path";
import { Registry } from "prom-client";
import { type PipeloraError, toPipeloraError } from "../../common/errors.ts";
import { hearLog, type Logger, unheardChild } from "../../common/log.ts";
import { ensureWritable } from "../../common/output-dir.ts";
import { adapterConfigs } from "../../config/adapters.ts";
import { type Config, withoutSecrets } from "../../config/options.ts";
import { JournalFile } from "../../coordinator/run/observers/journal-file.ts";
import { LiveRun } from "../../coordinator/run/observers/live-run.ts";
import { MetricsFile } from "../../coordinator/run/observers/metrics-file.ts";
import { MlflowObserver, mlflowSettings } from "../../coordinator/run/observers/mlflow.ts";
import { type Observer, withObservers } from "../../coordinator/run/observers/observer.ts";
import { TrainingMetrics } from "../../coordinator/run/observers/prometheus.ts";
import { TensorboardObserver } from "../../coordinator/run/observers/tensorboard.ts";
import type { HttpShows } from "../../coordinator/run/replies/live-replies.ts";
import type { Reporter, Shown } from "../../coordinator/run/reporter.ts";
import { barReporter, jsonReporter, logReporter } from "../../coordinator/run/reporters.ts";
import { type AdapterToTrain, train } from "../../coordinator/run/train.ts";

/** What is told of one adapter, and to whom. */
interface Told extends AdapterToTrain {
  readonly observers: readonly Observer[];
  error: PipeloraError | null;
}

/** What an address shows of a run: filled adapter by adapter. */
interface RunShows extends HttpShows {
  readonly live: LiveRun[];
  /** Null: there is no address. */
  metrics: TrainingMetrics | null;
}

export async function trainCommand(config: Config, log: Logger): Promise<number> {
  const shows: RunShows = { registry: new Registry(), live: [], metrics: null };
  const adapters: Told[] = [];
  let ended: unknown = null;
  try {
    const wanted = adapterConfigs("train", config);
    if (config.http !== null) shows.metrics = new TrainingMetrics(shows.registry, config.adapters !== null);
    for (const { name, config: own } of wanted) {
      const observers = await openObservers(name, own, shows, log);
      const failed = (error: PipeloraError) => {
        adapter.error = error;
      };
      const reporter = withObservers(chooseReporter(config, log, name), [
        ...observers,
        { failed, close: async () => {} },
      ]);
      const adapter: Told = { name, config: own, reporter, observers, error: null };
      adapters.push(adapter);
    }
    const [first] = adapters;
    const reporter = first!.name === null ? first!.reporter : ofAll(chooseReporter(config, log), adapters);
    await train(config, adapters, { log, reporter, http: shows });
    return 0;
  } catch (thrown) {
    ended = thrown;
    throw thrown;
  } finally {
    // PL_ADAPTERS_FAILED says that some adapters failed: one without an error of its own ended well.
    const ofRun = toPipeloraError(ended);
    for (const { observers, error } of adapters) {
      const own = error ?? (ended === null || ofRun.code === "PL_ADAPTERS_FAILED" ? null : ended);
      for (const observer of observers) await observer.close(own);
    }
  }
}

/** Events of the whole run belong to every adapter's journal, and to what the page shows of it. */
function ofAll(shown: Shown, adapters: readonly Told[]): Reporter {
  const keepers = adapters.flatMap(({ observers }) =>
    observers.filter((one) => one instanceof JournalFile || one instanceof LiveRun),
  );
  return withObservers(shown, keepers);
}

async function openObservers(name: string | null, config: Config, shows: RunShows, log: Logger): Promise<Observer[]> {
  const warn = (text: string) => log.warn(text);
  const outputDir = await ensureWritable(config.output_dir!);
  const wanted: readonly string[] = [config.report_to].flat();
  const events = config.logging_dir ?? join(outputDir, "runs");
  const live = config.http === null ? null : await LiveRun.open(name ?? "", resolve(outputDir), resumes(config));
  if (live !== null) shows.live.push(live);
  const journal = new JournalFile(outputDir, warn);
  hearLog(log, (line) => {
    journal.line(line);
    live?.line(line);
  });
  return [
    new MetricsFile(outputDir, warn),
    // Runs after the metrics are written: it reports how the run ended.
    journal,
    ...(live === null ? [] : [live]),
    ...(shows.metrics === null ? [] : [shows.metrics.observer(name)]),
    ...(wanted.includes("tensorboard") ? [await TensorboardObserver.open(events, warn)] : []),
    // Runs last: it ends what was opened for this run.
    ...(wanted.includes("mlflow")
      ? [await MlflowObserver.open(mlflowSettings(outputDir), withoutSecrets(config), warn)]
      : []),
  ];
}

function resumes({ resume_from_checkpoint: from }: Config): boolean {
  return from !== null && from !== false;
}

function chooseReporter(config: Config, log: Logger, adapter: string | null = null): Shown {
  if (config.json) return jsonReporter((line) => process.stdout.write(line), adapter);
  const terminal = process.stderr.isTTY === true && config.log_format === "text";
  // A bar is of one adapter.
  const bar = terminal && !config.disable_tqdm && config.adapters === null;
  return bar ? barReporter(process.stderr) : logReporter(unheardChild(log), adapter);
}
