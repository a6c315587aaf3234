import { PipeloraError } from "../../common/errors.ts";
import type { Config } from "../../config/options.ts";
import type { StepResult__Output } from "../../rpc/generated/pipelora/v1/StepResult.ts";
import type { Update } from "../../rpc/generated/pipelora/v1/Update.ts";
import type { Pipeline } from "../cluster/pipeline.ts";
import { type BestSettings, type Judgement, judge } from "./best.ts";
import { clipFactor, gradientNorm } from "./gradients.ts";
import { type LearningRateSettings, learningRate } from "./learning-rate.ts";
import { nextLossScale } from "./loss-scale.ts";
import { groupRates, type ParamGroup } from "./param-groups.ts";
import type { Reporter } from "./reporter.ts";
import type { Evaluation, StepSource, TrainStep } from "./step-source.ts";
import type { LogEntry, TrainerState } from "./trainer-state.ts";

/** What the loop asks of its surroundings. */
export interface TrainerHooks {
  /** Weights and optimizer state are those after `state.globalStep` updates. Called again for the last step. */
  save(state: TrainerState, stopping: boolean): Promise<void>;
  readonly interrupted: () => boolean;
  /** Whether the step that begins now is to be traced. */
  readonly traced: (step: number, isLast: boolean) => boolean;
  /** After a step, which began at `began` by performance.now(). */
  stepped(step: number, told: { readonly began: number; readonly traced: boolean }): Promise<void>;
  /** Whether somebody waits for what the weights say now. */
  readonly asked: () => boolean;
  /** Weights are those after so many updates. */
  answer(step: number): Promise<void>;
  /** After an evaluation, with the weights that it was of. */
  evaluated(step: number): Promise<void>;
}

type AdamSettings = Pick<Config, "adam_beta1" | "adam_beta2" | "adam_epsilon">;

/** When the loop logs, evaluates and saves, and what an update does. */
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
  readonly pipeline: Pipeline;
  readonly source: StepSource;
  readonly evaluation: Evaluation | null;
  readonly rate: LearningRateSettings;
  readonly groups: readonly ParamGroup[];
  /** Floating-point operations a padded token (6 a parameter outside the embedding). */
  readonly flosPerToken: number;
  readonly reporter: Reporter;
  readonly hooks: TrainerHooks;
}

/**
 * The optimizer steps of a run, from `state` (changed in place) to the end or an interrupt, with the Trainer's
 * (transformers 5.17) times of logging, evaluating and saving. An update travels with the next step's request: one round
 * trip a step. Returns whether the run came to its end.
 */
export async function trainSteps(options: TrainerOptions, state: TrainerState): Promise<boolean> {
  const { config, pipeline, source, reporter, hooks } = options;
  let pending: Update | null = null;
  const settle = async () => {
    if (pending !== null) await pipeline.applyUpdate(pending);
    pending = null;
  };
  const answer = async () => {
    if (!hooks.asked()) return;
    await settle();
    await hooks.answer(state.globalStep);
  };
  let next = state.globalStep < source.maxSteps ? await source.at(state.globalStep + 1) : null;
  while (next !== null) {
    await answer();
    const current: TrainStep = next;
    const step = state.globalStep + 1;
    const started = performance.now();
    const scale = state.lossScale?.scale ?? 1;
    const traced = hooks.traced(step, step === source.maxSteps);
    const running = pipeline.runStep({ step, lossScale: scale, trace: traced }, current.batches, pending);
    // Awaited below; should it fail before that, nothing else is to be told.
    running.catch(() => {});
    // The next step's rows are made while the workers compute this one.
    next = step < source.maxSteps ? await source.at(step + 1) : null;
    const results = await running;
    const { loss, norm } = lossAndNorm(results, state, step);
    const applied = state.globalStep - state.skippedSteps;
    const rate = learningRate(options.rate, applied);
    pending = Number.isFinite(norm)
      ? update(config, {
          step: applied + 1,
          groups: groupRates(options.rate, options.groups, applied),
          gradScale: clipFactor(norm, config.max_grad_norm) / scale,
        })
      : { skip: true };
    advance(state, current, loss, options.flosPerToken);
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
    await hooks.stepped(step, { began: started, traced });

    const interrupted = hooks.interrupted();
    const last = next === null;
    if (
      due(config.logging_strategy, config.logging_steps, step, current) ||
      (step === 1 && config.logging_first_step)
    ) {
      const mean = state.unloggedLoss / state.unloggedSteps;
      log(state, reporter, { loss: mean, ...(Number.isFinite(norm) ? { grad_norm: norm } : {}), learning_rate: rate });
    }
    const evalSteps = config.eval_steps ?? config.logging_steps;
    let judgement: Judgement = { isBest: false, stops: false };
    if (options.evaluation !== null && due(config.eval_strategy, evalSteps, step, current)) {
      await settle();
      judgement = judge(config, await evaluate(options, options.evaluation, state), state);
      await hooks.evaluated(step);
    }
    const wanted =
      config.save_strategy === "best"
        ? judgement.isBest
        : due(config.save_strategy, config.save_steps, step, current) || (last && config.save_strategy === "steps");
    if (wanted || interrupted) {
      await settle();
      await hooks.save(state, last || judgement.stops);
    }
    if (judgement.stops && !last) {
      const { evaluationsWithoutProgress: times, bestGlobalStep, bestMetric } = state;
      reporter.note(
        `stopping early after step ${step}: ${times} evaluations no better than ${bestMetric} of step ${bestGlobalStep}`,
      );
      break;
    }
    if (interrupted && !last) return false;
  }
  await settle();
  await answer();
  return true;
}

function due(strategy: "no" | "steps" | "epoch", every: number, step: number, { endsEpoch }: TrainStep): boolean {
  return strategy === "steps" ? step % every === 0 : strategy === "epoch" && endsEpoch;
}

/**
 * The step's loss and the norm of its gradients, the loss scale taken out. Under loss scaling an infinite norm is an overflow: the
 * step is to be skipped, and the next one is scaled less.
 */
function lossAndNorm(
  results: readonly StepResult__Output[],
  state: TrainerState,
  step: number,
): { loss: number; norm: number } {
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

/** The Trainer's last entry: speed and mean loss of the whole run. */
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
