import { Counter, Gauge, Histogram, type Registry } from "prom-client";
import type { Saved } from "../checkpoints/run-files.ts";
import type { LogEntry } from "../checkpoints/trainer-state.ts";
import type { StepProgress } from "../reporter.ts";
import type { Observer } from "./observer.ts";

/** Log entries' keys that have a metric of their own name. */
const LOGGED = {
  loss: ["pipelora_train_loss", "Mean loss since the log entry before."],
  grad_norm: ["pipelora_train_gradient_norm", "Norm of the last logged step's gradients, before clipping."],
  eval_loss: ["pipelora_eval_loss", "Loss of the last evaluation."],
  eval_runtime: ["pipelora_eval_seconds", "Seconds that the last evaluation took."],
} as const;

/** A run's numbers as Prometheus asks for them. */
export class PrometheusObserver implements Observer {
  readonly #logged: ReadonlyMap<string, Gauge>;
  readonly #step: Gauge;
  readonly #maxSteps: Gauge;
  readonly #epoch: Gauge;
  readonly #stepLoss: Gauge;
  readonly #rate: Gauge;
  readonly #tokens: Counter;
  readonly #steps: Counter;
  readonly #seconds: Histogram;
  readonly #saves: Counter;
  readonly #done: Gauge;

  constructor(registry: Registry) {
    const registers = [registry];
    const gauge = (name: string, help: string) => new Gauge({ name, help, registers });
    const counter = (name: string, help: string) => new Counter({ name, help, registers });
    this.#logged = new Map(Object.entries(LOGGED).map(([key, [name, help]]) => [key, gauge(name, help)]));
    this.#step = gauge("pipelora_train_step", "Updates done.");
    this.#maxSteps = gauge("pipelora_train_steps_planned", "Updates that the run is to have.");
    this.#epoch = gauge("pipelora_train_epoch", "Passes over the data done.");
    this.#stepLoss = gauge("pipelora_train_step_loss", "Loss of the last step.");
    this.#rate = gauge("pipelora_train_learning_rate", "Learning rate of the last step.");
    this.#tokens = counter("pipelora_train_tokens_total", "Tokens trained on by this process.");
    this.#steps = counter("pipelora_train_steps_total", "Steps that this process has done, those done again too.");
    this.#seconds = new Histogram({
      name: "pipelora_train_step_seconds",
      help: "Seconds a step takes.",
      buckets: [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100],
      registers,
    });
    this.#saves = counter("pipelora_train_saves_total", "Checkpoints written.");
    this.#done = gauge("pipelora_train_done", "1 once the adapter is written.");
  }

  step({ step, maxSteps, epoch, loss, learningRate, tokens, stepMs }: StepProgress): void {
    this.#step.set(step);
    this.#maxSteps.set(maxSteps);
    this.#epoch.set(epoch);
    this.#stepLoss.set(loss);
    this.#rate.set(learningRate);
    this.#tokens.inc(tokens);
    this.#steps.inc();
    this.#seconds.observe(stepMs / 1000);
  }

  log(entry: LogEntry): void {
    for (const [key, gauge] of this.#logged) {
      const value = entry[key];
      if (value !== undefined) gauge.set(value);
    }
  }

  saved(_saved: Saved, _step: number): void {
    this.#saves.inc();
  }

  end(): void {
    this.#done.set(1);
  }

  async close(): Promise<void> {}
}
