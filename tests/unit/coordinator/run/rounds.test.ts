import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { bytesOf } from "../../../../src/common/bytes.ts";
import { ERROR_CATALOGUE, type ErrorCode, PipeloraError } from "../../../../src/common/errors.ts";
import { defaultConfig } from "../../../../src/config/load.ts";
import type { Pipeline, PipelineAdapter, RoundPart } from "../../../../src/coordinator/cluster/pipeline.ts";
import { initialState } from "../../../../src/coordinator/run/checkpoints/trainer-state.ts";
import type { Reporter } from "../../../../src/coordinator/run/reporter.ts";
import { INITIAL_LOSS_SCALE } from "../../../../src/coordinator/run/steps/loss-scale.ts";
import { type Trained, trainRounds } from "../../../../src/coordinator/run/steps/rounds.ts";
import type { TrainStep } from "../../../../src/coordinator/run/steps/step-source.ts";
import { formatRanking, rankAdapters } from "../../../../src/coordinator/run/sweep-ranking.ts";
import { failureOf } from "../../../../src/coordinator/run/train.ts";
import { Trainer } from "../../../../src/coordinator/run/trainer.ts";
import type { Update } from "../../../../src/rpc/generated/pipelora/v1/Update.ts";

const CONFIG = { ...defaultConfig(), save_strategy: "steps", save_steps: 2, logging_steps: 1 } as const;
const SILENT = new Proxy({}, { get: () => () => {} }) as Reporter;

interface Plan {
  readonly steps: number;
  readonly batches: number;
  /** What happens to it: rows that can't be read, a loss that is NaN, a save that fails. */
  readonly broken: { readonly at: number; readonly how: "rows" | "loss" | "save" } | null;
  /** In float16: steps whose gradients overflow; absent: nothing is scaled. */
  readonly overflows?: readonly number[];
}

/** Adapters as these plans have them, and what was seen of each. */
function adaptersOf(plans: readonly Plan[]) {
  const rounds: number[][] = [];
  const seen = plans.map(() => [] as string[]);
  const failures = new Map<number, ErrorCode>();
  const finished: number[] = [];
  const trained = plans.map(({ steps, batches, broken, overflows }, number): Trained => {
    const breaks = (how: string, step: number) => broken?.how === how && broken.at === step;
    const at = async (step: number): Promise<TrainStep> => {
      if (breaks("rows", step)) throw new PipeloraError("PL_DATASET_INVALID", `row ${step}`);
      const none = new Int32Array(0);
      const packed = { batchRows: new Int32Array(batches), rowTokens: none, rowIds: none, tokens: none, targets: none };
      const own = [{ ...packed, weights: new Float32Array(0) }];
      return { batches: own, tokens: 100, paddedTokens: 1, epoch: 1, endsEpoch: false };
    };
    const pipeline = {
      number,
      applyUpdate: async (update: Update) => {
        seen[number]!.push(shown(update));
      },
    } as unknown as PipelineAdapter;
    const trainer = new Trainer(
      {
        ...{ config: CONFIG, pipeline, source: { maxSteps: steps, at }, evaluation: null, flosPerToken: 1 },
        ...{ rate: { type: "linear", peak: 1, warmupSteps: 0, totalSteps: steps } },
        ...{ groups: [{ peak: 1, weightDecay: 0 }], reporter: SILENT },
        hooks: {
          evaluated: async () => {},
          save: async ({ globalStep }) => {
            if (breaks("save", globalStep)) throw new PipeloraError("PL_OUTPUT_UNWRITABLE", "full");
            seen[number]!.push(`saved ${globalStep}`);
          },
          hold: async ({ globalStep }) => void seen[number]!.push(`held ${globalStep}`),
          finish: async () => {
            finished.push(number);
          },
        },
      },
      { ...initialState(), lossScale: overflows === undefined ? null : INITIAL_LOSS_SCALE },
    );
    return { number, adapter: { fail: ({ code }) => failures.set(number, code) }, trainer };
  });
  const pipeline = {
    runRound: async (_round: unknown, parts: readonly RoundPart[]) => {
      rounds.push(parts.map(({ adapter }) => adapter as number));
      return parts.map(({ adapter, step, previous, lossScale }) => {
        const number = adapter as number;
        seen[number]!.push(
          `${previous == null ? "" : `${shown(previous)}, `}step ${step}${lossScale === 1 ? "" : ` at ${lossScale}`}`,
        );
        const { broken, overflows = [] } = plans[number]!;
        const square = overflows.includes(step as number)
          ? Number.POSITIVE_INFINITY
          : (0.5 * (lossScale as number)) ** 2;
        const lossSum = broken?.how === "loss" && broken.at === step ? Number.NaN : 1;
        const sums = { lossSum, labelTokens: 1, correctTokens: 0, failure: null };
        return [{ ...sums, matrixIds: bytesOf(Int32Array.of(0)), gradSquares: bytesOf(Float64Array.of(square)) }];
      });
    },
  } as unknown as Pipeline;
  return { trained, pipeline, rounds, seen, failures, finished };
}

/** An update, with what gradients are multiplied by. */
const shown = ({ skip, step, gradScale }: Update) =>
  skip === true ? "no update" : `update ${step}${gradScale === 1 ? "" : ` by ${gradScale}`}`;

const HOOKS = {
  pause: async () => null,
  tells: () => false,
  traced: () => false,
  asked: () => false,
  answer: async () => {},
  stepped: async () => {},
};

const plan: fc.Arbitrary<Plan> = fc.record({
  steps: fc.integer({ min: 1, max: 7 }),
  batches: fc.integer({ min: 1, max: 5 }),
  broken: fc.option(
    fc.record({
      at: fc.integer({ min: 1, max: 7 }),
      how: fc.constantFrom("rows" as const, "loss" as const, "save" as const),
    }),
    { freq: 2 },
  ),
  overflows: fc.option(fc.uniqueArray(fc.integer({ min: 1, max: 7 })), { nil: undefined }) as fc.Arbitrary<number[]>,
});

test("each adapter's steps, updates and saves are those of its run alone, whoever ends or fails beside it", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(plan, { minLength: 1, maxLength: 6 }), async (plans) => {
      const all = adaptersOf(plans);
      assert.equal(await trainRounds(all.trained, all.pipeline, HOOKS), true);
      for (const [number, own] of plans.entries()) {
        const alone = adaptersOf([own]);
        await trainRounds(alone.trained, alone.pipeline, HOOKS);
        assert.deepEqual(all.seen[number], alone.seen[0]);
        assert.equal(all.failures.get(number), alone.failures.get(0));
        assert.equal(all.finished.includes(number), alone.finished.includes(0));
        assert.notEqual(all.finished.includes(number), all.failures.has(number));
      }
      // A round has everybody that goes on, those with the largest micro-batches first.
      for (const round of all.rounds) {
        const sizes = round.map((number) => 100 / plans[number]!.batches);
        assert.deepEqual(
          sizes,
          [...sizes].sort((a, b) => b - a),
        );
      }
      const steps = plans.map((_, number) => all.rounds.filter((round) => round.includes(number)).length);
      assert.equal(all.rounds.length, Math.max(0, ...steps));
    }),
    { numRuns: 150 },
  );
});

test("in float16 each adapter has a loss scale of its own: an overflow lowers that one's and skips that one's update", async () => {
  const plan = { steps: 4, batches: 1, broken: null };
  const { trained, pipeline, seen } = adaptersOf([
    { ...plan, overflows: [2, 3] },
    { ...plan, overflows: [] },
    { ...plan },
  ]);
  assert.equal(await trainRounds(trained, pipeline, HOOKS), true);
  const scales = seen.map((lines) => lines.flatMap((line) => /at (\d+)/.exec(line)?.[1] ?? []));
  assert.deepEqual(scales, [["65536", "65536", "32768", "16384"], ["65536", "65536", "65536", "65536"], []]);
  assert.equal(seen[0]!.filter((line) => line.includes("no update")).length, 2);
  assert.deepEqual(
    trained.map(({ trainer }) => trainer.state.skippedSteps),
    [2, 0, 0],
  );
});

test("only what is an adapter's own ends it alone; everything else ends the attempt", async () => {
  const own = ["PL_LOSS_NOT_FINITE", "PL_DATASET_INVALID", "PL_OUTPUT_UNWRITABLE", "PL_RESUME_INVALID"];
  for (const code of Object.keys(ERROR_CATALOGUE) as ErrorCode[]) {
    const { trained, pipeline, failures, finished } = adaptersOf([
      { steps: 3, batches: 1, broken: null },
      { steps: 3, batches: 1, broken: null },
    ]);
    trained[1]!.trainer.follow = async () => {
      throw new PipeloraError(code, "what happened");
    };
    const running = trainRounds(trained, pipeline, HOOKS);
    if (!own.includes(code)) await assert.rejects(running, { code });
    else {
      assert.equal(await running, true);
      assert.deepEqual([failures.get(1), finished], [code, [0]]);
    }
  }
});

for (const pause of ["save", "hold"] as const) {
  const done = pause === "save" ? "saved" : "held";
  test(`a pause to ${pause} has every adapter that goes on ${done}, and ends none`, async () => {
    const { trained, pipeline, seen, finished } = adaptersOf([
      { steps: 9, batches: 1, broken: null },
      { steps: 3, batches: 2, broken: null },
      { steps: 8, batches: 1, broken: null },
    ]);
    let rounds = 0;
    const hooks = { ...HOOKS, stepped: async () => void rounds++, pause: async () => (rounds >= 5 ? pause : null) };
    assert.equal(await trainRounds(trained, pipeline, hooks), false);
    assert.deepEqual(finished, [1]);
    for (const number of [0, 2]) assert.deepEqual(seen[number]!.slice(-2), ["update 5", `${done} 5`]);
  });
}

test("the last words name every adapter that failed; one alone fails with its own error", () => {
  const error = new PipeloraError("PL_LOSS_NOT_FINITE", "step 3: NaN");
  assert.equal(failureOf([{ name: null, error }]), error);
  assert.equal(failureOf([{ name: "a", error: null }]), null);
  const all = failureOf([
    { name: "a", error: null },
    { name: "b", error },
    { name: "c", error: new PipeloraError("PL_OUTPUT_UNWRITABLE", "full") },
  ]);
  assert.equal(all?.code, "PL_ADAPTERS_FAILED");
  assert.match(
    all!.message,
    /2 of 3 adapters failed.*\n {2}b: PL_LOSS_NOT_FINITE: step 3: NaN\n {2}c: PL_OUTPUT_UNWRITABLE: full/,
  );
});

test("a ranking is by the best evaluation, without any by the training's loss, those without an end last", async (t) => {
  const root = mkdtempSync(join(tmpdir(), "ranking-"));
  t.after(() => rmSync(root, { recursive: true }));
  const adapter = (name: string, history: object[] | null) => {
    const dir = join(root, name);
    mkdirSync(dir);
    const numbers = { epoch: 1, global_step: 4, max_steps: 4, num_train_epochs: 1, total_flos: 0, train_batch_size: 1 };
    const best = { best_global_step: null, best_metric: null, best_model_checkpoint: null, stateful_callbacks: {} };
    const state = { ...numbers, ...best, log_history: history };
    if (history !== null) writeFileSync(join(dir, "trainer_state.json"), JSON.stringify(state));
    return { name, dir, settings: { lora_r: name.length } };
  };
  const evaluated = (...losses: number[]) => [
    ...losses.map((eval_loss, at) => ({ step: at + 1, eval_loss })),
    { step: 4, train_loss: 9 },
  ];
  const ranked = await rankAdapters([
    adapter("a", evaluated(3, 1.5, 2)),
    adapter("bb", null),
    adapter("ccc", evaluated(1.25, 4)),
    adapter("dddd", [{ step: 4, train_loss: 0.5 }]),
  ]);
  assert.deepEqual(
    ranked.map(({ name, rank, best_eval_loss: best, best_step: step, eval_loss: last }) => [
      name,
      rank,
      best,
      step,
      last,
    ]),
    [
      ["ccc", 1, 1.25, 1, 4],
      ["a", 2, 1.5, 2, 2],
      ["dddd", 3, null, null, null],
      ["bb", null, null, null, null],
    ],
  );
  const trained = await rankAdapters([
    adapter("e", [{ step: 4, train_loss: 3 }]),
    adapter("f", [{ step: 4, train_loss: 2 }]),
  ]);
  assert.deepEqual(
    trained.map(({ name }) => name),
    ["f", "e"],
  );
  assert.match(formatRanking(ranked), /lora_r +best eval_loss.*\n1 +ccc +3 +1\.2500 +1 +4\.0000/);
  assert.match(formatRanking(ranked), /- +bb .*failed$/);
});
