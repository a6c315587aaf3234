import { Counter, Gauge, Histogram, type Registry } from "prom-client";
import type { LogEntry } from "../checkpoints/trainer-state.ts";
import type { StepProgress } from "../reporter.ts";
import type { Observer } from "./observer.ts";

/** Keys of log entries, and the metric of each. */
const LOGGED = {
  loss: ["pipelora_train_loss", "Mean loss since the log entry before."],
  grad_norm: ["pipelora_train_gradient_norm", "Norm of the last logged step's gradients, before clipping."],
  eval_loss: ["pipelora_eval_loss", "Loss of the last evaluation."],
  eval_runtime: ["pipelora_eval_seconds", "Seconds that the last evaluation took."],
} as const;

/** A run's metrics for /metrics. With several adapters they have the label `adapter`. */
export class TrainingMetrics {
  readonly #metrics;

  constructor(registry: Registry, several: boolean) {
    const common = { registers: [registry], labelNames: several ? ["adapter"] : [] };
    const gauge = (name: string, help: string) => new Gauge({ name, help, ...common });
    const counter = (name: string, help: string) => new Counter({ name, help, ...common });
    this.#metrics = {
      logged: new Map(Object.entries(LOGGED).map(([key, [name, help]]) => [key, gauge(name, help)])),
      step: gauge("pipelora_train_step", "Updates done."),
      maxSteps: gauge("pipelora_train_steps_planned", "Updates that the run is to have."),
      epoch: gauge("pipelora_train_epoch", "Passes over the data done."),
      stepLoss: gauge("pipelora_train_step_loss", "Loss of the last step."),
      rate: gauge("pipelora_train_learning_rate", "Learning rate of the last step."),
      tokens: counter("pipelora_train_tokens_total", "Tokens trained on by this process."),
      steps: counter("pipelora_train_steps_total", "Steps that this process has done, those done again too."),
      seconds: new Histogram({
        name: "pipelora_train_step_seconds",
        help: "Seconds a step takes.",
        buckets: [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100],
        ...common,
      }),
      saves: counter("pipelora_train_saves_total", "Checkpoints written."),
      done: gauge("pipelora_train_done", "1 once the adapter is written."),
    };
  }

  /** An observer that sets an adapter's metrics. Null: the only adapter. */
  observer(adapter: string | null): Observer {
    const labels: Record<string, string> = adapter === null ? {} : { adapter };
    const { logged, step, maxSteps, epoch, stepLoss, rate, tokens, steps, seconds, saves, done } = this.#metrics;
    done.set(labels, 0);
    return {
      step(progress: StepProgress): void {
        step.set(labels, progress.step);
        maxSteps.set(labels, progress.maxSteps);
        epoch.set(labels, progress.epoch);
        stepLoss.set(labels, progress.loss);
        rate.set(labels, progress.learningRate);
        tokens.inc(labels, progress.tokens);
        steps.inc(labels);
        seconds.observe(labels, progress.stepMs / 1000);
      },
      log(entry: LogEntry): void {
        for (const [key, gauge] of logged) {
          const value = entry[key];
          if (value !== undefined) gauge.set(labels, value);
        }
      },
      saved: () => saves.inc(labels),
      end: () => done.set(labels, 1),
      close: async () => {},
    };
  }
}
