import { z } from "zod";
import { PipeloraError } from "../../../common/errors.ts";
import type { LossScaleState } from "../steps/loss-scale.ts";

/** One entry of trainer_state.json's log_history, with the Trainer's keys. */
export type LogEntry = Readonly<Record<string, number>> & { readonly step: number };

const stateSchema = z.looseObject({
  best_global_step: z.number().nullable(),
  best_metric: z.number().nullable(),
  best_model_checkpoint: z.string().nullable(),
  epoch: z.number(),
  global_step: z.number().int().nonnegative(),
  max_steps: z.number().int(),
  num_train_epochs: z.number(),
  total_flos: z.number(),
  train_batch_size: z.number(),
  log_history: z.array(z.looseObject({ step: z.number() })),
  stateful_callbacks: z.looseObject({
    EarlyStoppingCallback: z
      .looseObject({
        attributes: z.looseObject({ early_stopping_patience_counter: z.number().int().nonnegative() }),
      })
      .optional(),
    Pipelora: z
      .looseObject({
        unlogged_loss: z.number(),
        unlogged_steps: z.number(),
        total_loss: z.number(),
        loss_scale: z.number().positive().optional(),
        steady_steps: z.number().int().nonnegative().optional(),
        skipped_steps: z.number().int().nonnegative().optional(),
        fingerprint: z.string(),
      })
      .optional(),
  }),
});

/** The parts of the Trainer's TrainerState (transformers 5.17) that a run needs, and sums that let a resumed run log the same numbers. */
export interface TrainerState {
  globalStep: number;
  epoch: number;
  totalFlos: number;
  logHistory: LogEntry[];
  bestMetric: number | null;
  bestGlobalStep: number | null;
  bestModelCheckpoint: string | null;
  /** How many evaluations in a row were no better, for early stopping. */
  evaluationsWithoutProgress: number;
  /** The sum of losses since the last log entry, and the number of steps in it. */
  unloggedLoss: number;
  unloggedSteps: number;
  totalLoss: number;
  /** Null unless gradients are computed in float16. */
  lossScale: LossScaleState | null;
  /** How many steps had overflowing gradients. They changed no weight; neither the schedule nor AdamW counts them. */
  skippedSteps: number;
}

/** What the file contains too, and is the same over a run. */
export interface TrainerStateContext {
  readonly maxSteps: number;
  readonly numTrainEpochs: number;
  readonly trainBatchSize: number;
  readonly loggingSteps: number;
  readonly evalSteps: number;
  readonly saveSteps: number;
  readonly earlyStopping: { readonly patience: number; readonly threshold: number } | null;
  /** A hash of the data, model and settings that decide the numbers. Only a run with the same one may resume the checkpoint. */
  readonly fingerprint: string;
}

export function initialState(): TrainerState {
  return {
    globalStep: 0,
    epoch: 0,
    totalFlos: 0,
    logHistory: [],
    bestMetric: null,
    bestGlobalStep: null,
    bestModelCheckpoint: null,
    evaluationsWithoutProgress: 0,
    unloggedLoss: 0,
    unloggedSteps: 0,
    totalLoss: 0,
    lossScale: null,
    skippedSteps: 0,
  };
}

/** A copy, which later changes of `state` do not affect. */
export function copyState(state: TrainerState): TrainerState {
  return { ...state, logHistory: [...state.logHistory] };
}

/** The text of trainer_state.json, with keys sorted as the Trainer sorts them. */
export function serializeState(state: TrainerState, context: TrainerStateContext, stopping: boolean): string {
  const value = {
    best_global_step: state.bestGlobalStep,
    best_metric: state.bestMetric,
    best_model_checkpoint: state.bestModelCheckpoint,
    epoch: state.epoch,
    eval_steps: context.evalSteps,
    global_step: state.globalStep,
    is_hyper_param_search: false,
    is_local_process_zero: true,
    is_world_process_zero: true,
    log_history: state.logHistory.map(sortKeys),
    logging_steps: context.loggingSteps,
    max_steps: context.maxSteps,
    num_input_tokens_seen: 0,
    num_train_epochs: context.numTrainEpochs,
    save_steps: context.saveSteps,
    stateful_callbacks: {
      ...(context.earlyStopping === null
        ? {}
        : {
            EarlyStoppingCallback: {
              args: {
                early_stopping_patience: context.earlyStopping.patience,
                early_stopping_threshold: context.earlyStopping.threshold,
              },
              attributes: { early_stopping_patience_counter: state.evaluationsWithoutProgress },
            },
          }),
      Pipelora: {
        fingerprint: context.fingerprint,
        ...(state.lossScale === null
          ? {}
          : {
              loss_scale: state.lossScale.scale,
              skipped_steps: state.skippedSteps,
              steady_steps: state.lossScale.steadySteps,
            }),
        total_loss: state.totalLoss,
        unlogged_loss: state.unloggedLoss,
        unlogged_steps: state.unloggedSteps,
      },
      TrainerControl: {
        args: {
          should_epoch_stop: false,
          should_evaluate: false,
          should_log: false,
          should_save: true,
          should_training_stop: stopping,
        },
        attributes: {},
      },
    },
    total_flos: state.totalFlos,
    train_batch_size: context.trainBatchSize,
    trial_name: null,
    trial_params: null,
  };
  return `${JSON.stringify(value, null, 2)}\n`;
}

/**
 * Reads the text of trainer_state.json. `fingerprint` null: any run's is accepted. Errors: PL_RESUME_INVALID if the text is no trainer state, or
 * belongs to a run with other data, model or settings.
 */
export function parseState(text: string, path: string, fingerprint: string | null): TrainerState {
  const parsed = stateSchema.safeParse(tryJson(text));
  if (!parsed.success) {
    throw new PipeloraError("PL_RESUME_INVALID", `${path} is not a trainer state: ${parsed.error.issues[0]?.message}`);
  }
  const state = parsed.data;
  const ours = state.stateful_callbacks.Pipelora;
  if (fingerprint !== null && ours !== undefined && ours.fingerprint !== fingerprint) {
    throw new PipeloraError(
      "PL_RESUME_INVALID",
      `${path} belongs to a run with another model, dataset or training settings (${ours.fingerprint}, this run is ${fingerprint})`,
      { hint: "Resume with the settings of that run, or train anew with --overwrite-output-dir." },
    );
  }
  return {
    globalStep: state.global_step,
    epoch: state.epoch,
    totalFlos: state.total_flos,
    logHistory: state.log_history as LogEntry[],
    bestMetric: state.best_metric,
    bestGlobalStep: state.best_global_step,
    bestModelCheckpoint: state.best_model_checkpoint,
    evaluationsWithoutProgress:
      state.stateful_callbacks.EarlyStoppingCallback?.attributes.early_stopping_patience_counter ?? 0,
    unloggedLoss: ours?.unlogged_loss ?? 0,
    unloggedSteps: ours?.unlogged_steps ?? 0,
    totalLoss: ours?.total_loss ?? 0,
    lossScale: ours?.loss_scale === undefined ? null : { scale: ours.loss_scale, steadySteps: ours.steady_steps ?? 0 },
    skippedSteps: ours?.skipped_steps ?? 0,
  };
}

function tryJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function sortKeys(entry: LogEntry): LogEntry {
  return Object.fromEntries(Object.entries(entry).sort(([a], [b]) => (a < b ? -1 : 1))) as LogEntry;
}
