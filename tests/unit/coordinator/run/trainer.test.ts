import assert from "node:assert/strict";
import { test } from "node:test";
import { bytesOf } from "../../../../src/common/bytes.ts";
import type { PipeloraError } from "../../../../src/common/errors.ts";
import { defaultConfig } from "../../../../src/config/load.ts";
import type { Pipeline, PipelineAdapter, RoundPart } from "../../../../src/coordinator/cluster/pipeline.ts";
import {
  initialState,
  parseState,
  serializeState,
  type TrainerState,
} from "../../../../src/coordinator/run/checkpoints/trainer-state.ts";
import { INITIAL_LOSS_SCALE, nextLossScale } from "../../../../src/coordinator/run/steps/loss-scale.ts";
import { trainRounds } from "../../../../src/coordinator/run/steps/rounds.ts";
import type { TrainStep } from "../../../../src/coordinator/run/steps/step-source.ts";
import { type LoopSettings, Trainer, type TrainerOptions } from "../../../../src/coordinator/run/trainer.ts";
import type { Update } from "../../../../src/rpc/generated/pipelora/v1/Update.ts";

const CONFIG = { ...defaultConfig(), max_grad_norm: 1, save_strategy: "no", logging_steps: 1 } as const;
const RATE = { type: "linear", peak: 1, warmupSteps: 0, totalSteps: 4 } as const;
const QUIET = {
  step: () => {},
  log: () => {},
  note: () => {},
  predictions: () => {},
  preflight: () => {},
  saved: () => {},
  end: () => {},
  plan: () => {},
  samples: () => {},
  failed: () => {},
  began: () => {},
  lastStep: () => {},
};

/** What a run is told beside the defaults, and what it is asked to evaluate. */
type Times = Pick<Partial<TrainerOptions>, "evaluation"> & { readonly config?: Partial<LoopSettings> };

/**
 * Trains four steps, epochs of three; `square` is the squared gradient norm that the workers report at a step under a loss scale.
 */
async function train(
  state: TrainerState,
  square: (step: number, scale: number) => number,
  loss = 2,
  { config = {}, evaluation = null }: Times = {},
) {
  const updates: Update[] = [];
  const scales: number[] = [];
  const saved: number[] = [];
  const pipeline = {
    runRound: async (_round: unknown, parts: readonly RoundPart[]) =>
      parts.map(({ step, previous, lossScale: scale }) => {
        if (previous != null) updates.push(previous);
        scales.push(scale as number);
        const gradSquares = bytesOf(Float64Array.of(square(step as number, scale as number)));
        const sums = { lossSum: loss, labelTokens: 1, correctTokens: 0, failure: null };
        return [{ ...sums, matrixIds: bytesOf(Int32Array.of(0)), gradSquares }];
      }),
  } as unknown as Pipeline;
  const own = {
    number: 0,
    applyUpdate: async (update: Update) => {
      updates.push(update);
    },
    evaluate: async () => ({ lossSum: 1 }),
  } as unknown as PipelineAdapter;
  const at = async (step: number): Promise<TrainStep> => ({
    batches: [],
    tokens: 1,
    paddedTokens: 1,
    epoch: step / 4,
    endsEpoch: step % 3 === 0,
  });
  const save = async ({ globalStep }: TrainerState) => {
    saved.push(globalStep);
  };
  const hooks = { save, hold: async () => {}, evaluated: async () => {}, finish: async () => {} };
  const rounds = {
    pause: async () => null,
    tells: () => false,
    asked: () => false,
    answer: async () => {},
    stepped: async () => {},
    traced: () => false,
  };
  const options = {
    config: { ...CONFIG, ...config },
    pipeline: own,
    source: { maxSteps: 4, at },
    evaluation,
    rate: RATE,
    groups: [{ peak: 1, weightDecay: 0 }],
    flosPerToken: 1,
  };
  const trainer = new Trainer({ ...options, reporter: QUIET, hooks }, state);
  let failure: PipeloraError | null = null;
  const adapter = {
    fail: (error: PipeloraError) => {
      failure = error;
    },
  };
  await trainRounds([{ number: 0, adapter, trainer }], pipeline, rounds);
  if (failure !== null) throw failure;
  return { updates, scales, saved };
}

test("under loss scaling an overflow skips the step, halves the scale, and is not counted", async () => {
  const state = { ...initialState(), lossScale: INITIAL_LOSS_SCALE };
  const gradient = 0.5;
  const { updates, scales } = await train(state, (step, scale) =>
    step === 2 ? Number.POSITIVE_INFINITY : (gradient * scale) ** 2,
  );
  assert.deepEqual(scales, [65536, 65536, 32768, 32768]);
  assert.deepEqual(
    updates.map(({ skip }) => skip === true),
    [false, true, false, false],
  );
  const applied = updates.filter(({ skip }) => skip !== true);
  assert.deepEqual(
    applied.map(({ step, groups }) => [step, groups![0]!.learningRate]),
    [
      [1, 1],
      [2, 0.75],
      [3, 0.5],
    ],
  );
  // Not clipped: the norm is 0.5 once the scale is out of it.
  assert.deepEqual(
    applied.map(({ gradScale }) => gradScale),
    [1 / 65536, 1 / 32768, 1 / 32768],
  );
  assert.equal(state.skippedSteps, 1);
  const context = {
    maxSteps: 4,
    numTrainEpochs: 1,
    trainBatchSize: 1,
    loggingSteps: 1,
    evalSteps: 1,
    saveSteps: 1,
    earlyStopping: null,
  };
  const text = serializeState(state, { ...context, fingerprint: "f" }, false);
  const resumed = parseState(text, "checkpoint", "f");
  assert.deepEqual([resumed.lossScale, resumed.skippedSteps], [{ scale: 32768, steadySteps: 2 }, 1]);
});

test("without loss scaling an infinite gradient, and always an infinite loss, ends the run", async () => {
  const overflow = () => Number.POSITIVE_INFINITY;
  await assert.rejects(train(initialState(), overflow), { code: "PL_LOSS_NOT_FINITE" });
  const scaled = { ...initialState(), lossScale: INITIAL_LOSS_SCALE };
  await assert.rejects(
    train(scaled, () => 1, Number.NaN),
    { code: "PL_LOSS_NOT_FINITE", message: /loss scale 65536/ },
  );
});

test("the scale grows after 2000 steady steps and gives up where no scale helps", () => {
  assert.deepEqual(nextLossScale({ scale: 8, steadySteps: 1999 }, true, 1), { scale: 16, steadySteps: 0 });
  assert.deepEqual(nextLossScale({ scale: 8, steadySteps: 5 }, true, 1), { scale: 8, steadySteps: 6 });
  assert.throws(() => nextLossScale({ scale: 2 ** -20, steadySteps: 0 }, false, 7), { code: "PL_LOSS_NOT_FINITE" });
});

test("what goes by steps comes once more at the end, what goes by epochs at a run's end within one", async () => {
  const evaluation = { *parts() {}, rows: 1, steps: 1 };
  /** Steps of what was logged, in that order: a loss as 1, an evaluation as 1.5. */
  const times = async (config: Partial<LoopSettings>) => {
    const state = initialState();
    const { saved } = await train(state, () => 1, 2, { config, evaluation });
    return [state.logHistory.map((entry) => entry.step + ("loss" in entry ? 0 : 0.5)), saved];
  };
  const steps = { logging_strategy: "steps", eval_strategy: "steps", save_strategy: "steps" } as const;
  const epochs = { logging_strategy: "epoch", eval_strategy: "epoch", save_strategy: "epoch" } as const;
  const each = { logging_steps: 2, eval_steps: 3, save_steps: 3 };
  assert.deepEqual(await times({ ...steps, ...each }), [
    [2, 3.5, 4, 4.5],
    [3, 4],
  ]);
  assert.deepEqual(await times({ ...epochs, ...each }), [
    [3, 3.5, 4, 4.5],
    [3, 4],
  ]);
  // By steps before by epochs: transformers' DefaultFlowCallback is asked behind the step, then behind the epoch.
  assert.deepEqual(await times({ ...steps, ...each, logging_strategy: "epoch" }), [
    [3.5, 3, 4.5, 4],
    [3, 4],
  ]);
  assert.deepEqual(await times({ ...epochs, ...each, logging_strategy: "steps" }), [
    [2, 3.5, 4, 4.5],
    [3, 4],
  ]);
  assert.deepEqual(await times({ ...epochs, logging_first_step: true, eval_strategy: "no", save_strategy: "no" }), [
    [1, 3, 4],
    [],
  ]);
});
