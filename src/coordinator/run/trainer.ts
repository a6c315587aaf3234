import { PipeloraError } from "../../common/errors.ts";
import type { Config } from "../../config/options.ts";
import type { Update } from "../../rpc/generated/pipelora/v1/Update.ts";
import { fromFailure } from "../../rpc/wire-error.ts";
import type { PipelineAdapter, RoundPart, StepSums } from "../cluster/pipeline.ts";
import { type BestSettings, type Judgement, judge } from "./checkpoints/best.ts";
import type { LogEntry, TrainerState } from "./checkpoints/trainer-state.ts";
import type { Reporter } from "./reporter.ts";
import { clipFactor, gradientNorm } from "./steps/gradients.ts";
import { type LearningRateSettings, learningRate } from "./steps/learning-rate.ts";
import { nextLossScale } from "./steps/loss-scale.ts";
import { groupRates, type ParamGroup } from "./steps/param-groups.ts";
import type { Pause } from "./steps/rounds.ts";
import type { Evaluation, StepSource, TrainStep } from "./steps/step-source.ts";

/** What an adapter's trainer needs from its caller. */
export interface TrainerHooks {
  /** Saves weights and optimizer state, which are those after `state.globalStep` updates. The last step is saved a second time. */
  save(state: TrainerState, stopping: boolean): Promise<void>;
  /** The same in memory, for the next attempt. */
  hold(state: TrainerState): Promise<void>;
  /** Called after an evaluation, with the same weights. */
  evaluated(step: number): Promise<void>;
  /** Called after the last update, or an early stop. */
  finish(state: TrainerState): Promise<void>;
}

type AdamSettings = Pick<Config, "adam_beta1" | "adam_beta2" | "adam_epsilon">;

/** The settings that decide when the trainer logs, evaluates and saves, and what an update does. */
export type LoopSettings = AdamSettings &
  BestSettings &
  Pick<
    Config,
    | "max_grad_norm"
    | "logging_strategy"
    | "logging_steps"
    | "logging_first_step"
    | "eval_strategy"
    | "eval_steps"
    | "save_strategy"
    | "save_steps"
  >;

export interface TrainerOptions {
  readonly config: LoopSettings;
  readonly pipeline: PipelineAdapter;
  readonly source: StepSource;
  readonly evaluation: Evaluation | null;
  readonly rate: LearningRateSettings;
  readonly groups: readonly ParamGroup[];
  /** FLOP of a padded token: 6 for each parameter outside the embedding. */
  readonly flosPerToken: number;
  readonly reporter: Reporter;
  readonly hooks: TrainerHooks;
}

/**
 * The optimizer steps of one adapter, from `state` to the end. It logs, evaluates and saves when the Trainer (transformers 5.17) does, and changes
 * `state` in place. Rounds (rounds.ts) call it step by step. An update is sent with the next step's request, so a step takes one round trip.
 */
export class Trainer {
  readonly #options: TrainerOptions;
  readonly state: TrainerState;
  /** The update of the last step, if it has not been sent to the workers. */
  #pending: Update | null = null;
  /** The step that is being computed, or comes next. */
  #current: TrainStep | null = null;
  #next: TrainStep | null = null;
  /** grad_norm, where it is finite, and learning_rate of the last step. */
  #stepValues: Readonly<Record<string, number>> = {};
  #ended = false;

  constructor(options: TrainerOptions, state: TrainerState) {
    this.#options = options;
    this.state = state;
  }

  /** Whether it takes part in no more rounds. */
  get ended(): boolean {
    return this.#ended;
  }

  /** Makes the rows of the first step. Ends at once if no step is left. */
  async open(): Promise<void> {
    this.#current = await this.#rows(this.state.globalStep + 1);
    if (this.#current === null) await this.#finish();
  }

  /** Mean tokens of the next step's micro-batches. */
  get batchTokens(): number {
    const { batches, tokens } = this.#current!;
    return (
      tokens /
      Math.max(
        1,
        batches.reduce((sum, { batchRows }) => sum + batchRows.length, 0),
      )
    );
  }

  /** Whether the next step is the last, unless an early stop comes first. */
  get isAtLast(): boolean {
    return this.state.globalStep + 1 === this.#options.source.maxSteps;
  }

  /** The next step as a part of a round's request. */
  begin(): RoundPart {
    const part = {
      adapter: this.#options.pipeline.number,
      step: this.state.globalStep + 1,
      batches: this.#current!.batches,
      previous: this.#pending,
      lossScale: this.state.lossScale?.scale ?? 1,
    };
    this.#pending = null;
    return part;
  }

  /** Makes the rows of the following step while the workers compute. */
  async prepare(): Promise<void> {
    this.#next = await this.#rows(this.state.globalStep + 2);
  }

  /** Takes the sums of the step, by replica. `started`: when it began, by performance.now(). Errors: PL_LOSS_NOT_FINITE. */
  took(results: readonly StepSums[], started: number): void {
    const { config, source, reporter, rate: settings, groups, flosPerToken } = this.#options;
    const { state } = this;
    const step = state.globalStep + 1;
    const scale = state.lossScale?.scale ?? 1;
    const { loss, norm } = lossAndNorm(results, state, step);
    const applied = state.globalStep - state.skippedSteps;
    const rate = learningRate(settings, applied);
    this.#pending = Number.isFinite(norm)
      ? update(config, {
          step: applied + 1,
          groups: groupRates(settings, groups, applied),
          gradScale: clipFactor(norm, config.max_grad_norm) / scale,
        })
      : { skip: true };
    const current = this.#current!;
    advance(state, current, loss, flosPerToken);
    reporter.step({
      step,
      maxSteps: source.maxSteps,
      epoch: state.epoch,
      loss,
      learningRate: rate,
      gradNorm: norm,
      tokens: current.tokens,
      stepMs: performance.now() - started,
    });
    this.#stepValues = { ...(Number.isFinite(norm) ? { grad_norm: norm } : {}), learning_rate: rate };
    const asked = config.logging_strategy === "steps" && step % config.logging_steps === 0;
    if (asked || (step === 1 && config.logging_first_step)) this.#logLoss();
  }

  /** Evaluates and saves if the step just taken is due for it, and ends after the last step or early. `pause`: saves or holds in any case. */
  async follow(pause: Pause | null): Promise<void> {
    const { config, reporter, hooks } = this.#options;
    const { state } = this;
    const current = this.#current!;
    const step = state.globalStep;
    const last = this.#next === null;
    const { evaluation } = this.#options;
    let judgement: Judgement = { isBest: false, stops: false };
    const evaluated = async (asked: Evaluation) => {
      await this.settle();
      judgement = judge(config, await evaluate(this.#options, asked, state), state);
      await hooks.evaluated(step);
    };
    // As in the Trainer, what goes by steps comes first and once more at the end; then what goes by epochs, which the run's end closes.
    const atStep = (every: number) => step % every === 0 || last;
    if (evaluation !== null && config.eval_strategy === "steps" && atStep(config.eval_steps ?? config.logging_steps)) {
      await evaluated(evaluation);
    }
    const closes = current.endsEpoch || last || judgement.stops;
    if (closes && config.logging_strategy === "epoch" && state.unloggedSteps > 0) this.#logLoss();
    if (closes && config.eval_strategy === "epoch" && evaluation !== null) await evaluated(evaluation);
    const wanted = {
      ...{ no: false, best: judgement.isBest },
      ...{ steps: atStep(config.save_steps), epoch: closes },
    }[config.save_strategy];
    if (wanted || pause === "save") {
      await this.settle();
      await hooks.save(state, last || judgement.stops);
    }
    if (judgement.stops && !last) {
      const { evaluationsWithoutProgress: times, bestGlobalStep, bestMetric } = state;
      reporter.note(
        `stopping early after step ${step}: ${times} evaluations no better than ${bestMetric} of step ${bestGlobalStep}`,
      );
    }
    this.#current = this.#next;
    if (last || judgement.stops) return this.#finish();
    if (pause === "hold") {
      await this.settle();
      await hooks.hold(state);
    }
  }

  /** Sends a pending update, so that the workers' weights are those after `state.globalStep` updates. */
  async settle(): Promise<void> {
    if (this.#pending !== null) await this.#options.pipeline.applyUpdate(this.#pending);
    this.#pending = null;
  }

  /** Ends after a fault of its own. */
  abandon(): void {
    this.#ended = true;
  }

  /** The mean loss since the last such entry, and what the last step gave. */
  #logLoss(): void {
    const { state } = this;
    log(state, this.#options.reporter, { loss: state.unloggedLoss / state.unloggedSteps, ...this.#stepValues });
  }

  async #finish(): Promise<void> {
    await this.settle();
    this.#ended = true;
    await this.#options.hooks.finish(this.state);
  }

  async #rows(step: number): Promise<TrainStep | null> {
    const { source } = this.#options;
    return step <= source.maxSteps ? source.at(step) : null;
  }
}

/**
 * The step's loss and gradient norm, divided by the loss scale. With loss scaling an infinite norm is an overflow: the step is skipped, and the
 * next one has a smaller scale.
 */
function lossAndNorm(results: readonly StepSums[], state: TrainerState, step: number): { loss: number; norm: number } {
  const broken = results.find(({ failure }) => failure !== null);
  if (broken !== undefined) throw fromFailure(broken.failure!);
  const loss = results.reduce((sum, result) => sum + result.lossSum, 0);
  const norm = gradientNorm(results) / (state.lossScale?.scale ?? 1);
  const finite = Number.isFinite(norm);
  if (!Number.isFinite(loss) || (!finite && state.lossScale === null)) {
    const scaled = state.lossScale === null ? "" : `, loss scale ${state.lossScale.scale}`;
    throw new PipeloraError("PL_LOSS_NOT_FINITE", `step ${step}: loss ${loss}, gradient norm ${norm}${scaled}`, {
      hint: "Lower the learning rate, or look for rows that overflow the compute dtype.",
    });
  }
  if (state.lossScale !== null) state.lossScale = nextLossScale(state.lossScale, finite, step);
  if (!finite) state.skippedSteps++;
  return { loss, norm };
}

function update(config: AdamSettings, now: Required<Pick<Update, "step" | "groups" | "gradScale">>): Update {
  return {
    ...now,
    beta1: config.adam_beta1,
    beta2: config.adam_beta2,
    epsilon: config.adam_epsilon,
  };
}

function advance(state: TrainerState, current: TrainStep, loss: number, flosPerToken: number): void {
  state.globalStep++;
  state.epoch = current.epoch;
  state.totalFlos += flosPerToken * current.paddedTokens;
  state.unloggedLoss += loss;
  state.unloggedSteps++;
  state.totalLoss += loss;
}

function log(state: TrainerState, reporter: Reporter, values: Readonly<Record<string, number>>): void {
  const entry: LogEntry = { ...values, epoch: state.epoch, step: state.globalStep };
  state.logHistory.push(entry);
  if ("loss" in values) {
    state.unloggedLoss = 0;
    state.unloggedSteps = 0;
  }
  reporter.log(entry);
}

async function evaluate(
  options: TrainerOptions,
  { parts, rows, steps }: Evaluation,
  state: TrainerState,
): Promise<Readonly<Record<string, number>>> {
  const started = performance.now();
  let loss = 0;
  for (const batches of parts()) loss += (await options.pipeline.evaluate(batches)).lossSum;
  const seconds = (performance.now() - started) / 1000;
  const values = {
    eval_loss: loss,
    eval_runtime: round(seconds, 4),
    eval_samples_per_second: round(rows / seconds, 3),
    eval_steps_per_second: round(steps / seconds, 3),
  };
  log(state, options.reporter, values);
  return values;
}

/** The Trainer's last log entry: speed and mean loss of the whole run. */
export function summarise(
  state: TrainerState,
  reporter: Reporter,
  run: { readonly seconds: number; readonly samples: number; readonly steps: number },
): Readonly<Record<string, number>> {
  const summary = {
    train_runtime: round(run.seconds, 4),
    train_samples_per_second: round(run.samples / run.seconds, 3),
    train_steps_per_second: round(run.steps / run.seconds, 3),
    total_flos: state.totalFlos,
    train_loss: state.totalLoss / Math.max(1, state.globalStep),
  };
  log(state, reporter, summary);
  return summary;
}

function round(value: number, digits: number): number {
  return Number(value.toFixed(digits));
}
