import type { FloatDtype } from "../common/dtype.ts";
import { allowedCores } from "../common/machine.ts";
import type { DeviceTensor, Engine, MicroBatch } from "../engine/index.ts";
import type { Calibrate__Output } from "../rpc/generated/pipelora/v1/Calibrate.ts";
import type { Calibrated } from "../rpc/generated/pipelora/v1/Calibrated.ts";
import type { LayerTime } from "../rpc/generated/pipelora/v1/LayerTime.ts";
import { processorSeconds } from "./node/processor-time.ts";
import { type EngineHost, prepareRank } from "./prepare.ts";
import type { NodeModel } from "./weights/node-model.ts";

/** After a first, cold run a size is timed at least this often, and for this long. The median counts. */
const LEAST_RUNS = 5;
const LEAST_MS = 400;
/** A GPU computes this long before it is timed: for its first seconds a cool GPU is faster than its power limit allows in a run. */
const HEAT_MS = 1500;
const INPUT_STREAM = 1;

/** Times one block, and the final norm with the head, at the requested sizes, with the checkpoint's weights. Errors: those of prepareRank. */
export async function calibrate(
  request: Calibrate__Output,
  model: NodeModel,
  rank: number,
  host: EngineHost,
): Promise<Calibrated> {
  const prepared = await prepareRank(request.prepare!, model, rank, host);
  const { engine } = prepared;
  try {
    const timer = new LayerTimer(engine, host, request);
    const block: LayerTime[] = [];
    for (const tokens of request.tokens) block.push(await timer.time(prepared.engineSegment.get(0)!, tokens, false));
    const updates: Spent[] = [];
    const rates = new Float64Array(prepared.adapters[0]!.groups.length);
    for (let run = 0; run < LEAST_RUNS; run++) {
      updates.push(
        await spent(async () => {
          await engine.gradSquares();
          await engine.optimizerStep({ ...NO_CHANGE, learningRates: rates, weightDecays: rates });
        }),
      );
    }
    const update = middle(updates);
    const head: LayerTime[] = [];
    for (const tokens of request.labelTokens) head.push(await timer.time(prepared.engineSegment.get(1)!, tokens, true));
    return { block, head, update: update.seconds, updateProcessor: update.processor, cores: allowedCores() };
  } finally {
    await engine.close();
  }
}

const NO_CHANGE = { step: 1, gradScale: 1, beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };

class LayerTimer {
  readonly #engine: Engine;
  readonly #host: EngineHost;
  readonly #request: Calibrate__Output;
  #batches = 0;
  #hot: boolean;

  constructor(engine: Engine, host: EngineHost, request: Calibrate__Output) {
    this.#engine = engine;
    this.#host = host;
    this.#request = request;
    this.#hot = host.device === "cpu";
  }

  /** Seconds of `tokens` tokens in a segment. `labelled`: the segment ends with the head, and every token has a label. */
  async time(segment: number, tokens: number, labelled: boolean): Promise<LayerTime> {
    const values = await this.#engine.write([await this.#activation(tokens)], [tokens, this.#hidden], this.#dtype);
    const pass = () => this.#pass(segment, values, labelled);
    for (const began = performance.now(); !this.#hot && performance.now() - began < HEAT_MS; ) await pass();
    this.#hot = true;
    await pass();
    const passes: Awaited<ReturnType<typeof pass>>[] = [];
    const began = performance.now();
    while (passes.length < LEAST_RUNS || performance.now() - began < LEAST_MS) passes.push(await pass());
    values.free();
    const forward = middle(passes.map((one) => one.forward));
    const backward = middle(passes.map((one) => one.backward));
    return {
      tokens,
      forward: forward.seconds,
      backward: backward.seconds,
      forwardProcessor: forward.processor,
      backwardProcessor: backward.processor,
    };
  }

  /** One forward and one backward pass. A copy of `values` is the input, and another the output's gradient. */
  async #pass(segment: number, values: DeviceTensor, labelled: boolean): Promise<{ forward: Spent; backward: Spent }> {
    this.#host.signal.throwIfAborted();
    const engine = this.#engine;
    const batch = this.#batch(values.shape[0]!, labelled);
    const input = await engine.copy(values);
    const gradient = labelled ? null : await engine.copy(values);
    const forward = await this.#spent(async () => {
      (await engine.forward(segment, batch, input)).output?.free();
    });
    const backward = await this.#spent(async () => {
      (await engine.backward(segment, batch.index, gradient))?.free();
    });
    return { forward, backward };
  }

  /** What `work` took. The device may still be computing when its calls resolve: a small copy queued after them waits for that. */
  async #spent(work: () => Promise<void>): Promise<Spent> {
    const mark = await this.#engine.write([new Uint8Array(4)], [1, 1], "float32");
    const taken = await spent(async () => {
      await work();
      await this.#engine.read(mark);
    });
    mark.free();
    return taken;
  }

  get #dtype(): FloatDtype {
    return this.#request.prepare!.computeDtype as FloatDtype;
  }

  get #seed(): number {
    return this.#request.prepare!.adapters[0]!.seed;
  }

  get #hidden(): number {
    return this.#request.hidden;
  }

  async #activation(tokens: number): Promise<Uint8Array> {
    const width = this.#dtype === "float32" ? 4 : 2;
    const bytes = new Uint8Array(tokens * this.#hidden * width);
    const key = { seed: this.#seed, stream: INPUT_STREAM, offset: 0 };
    await this.#host.addon.fillNormal(bytes, this.#dtype, key, 1, this.#request.prepare!.threads);
    return bytes;
  }

  #batch(tokens: number, labelled: boolean): MicroBatch {
    const { rowTokens } = this.#request;
    const rows = Math.ceil(tokens / rowTokens);
    const bounds = Array.from({ length: rows + 1 }, (_, row) => Math.min(tokens, row * rowTokens));
    return {
      index: this.#batches++,
      cuSeqlens: Int32Array.from(bounds),
      rowIds: Int32Array.from({ length: rows }, (_, row) => row),
      step: 1,
      seed: this.#seed,
      training: true,
      labelSmoothing: 0,
      lossScale: 1,
      noiseAlpha: 0,
      tokens: null,
      targets: labelled ? new Int32Array(tokens) : null,
      weights: labelled ? new Float32Array(tokens).fill(1 / tokens) : null,
    };
  }
}

/** Wall time and processor time of something. */
interface Spent {
  readonly seconds: number;
  readonly processor: number;
}

async function spent(work: () => Promise<void>): Promise<Spent> {
  const [began, before] = [performance.now(), processorSeconds()];
  await work();
  return { seconds: (performance.now() - began) / 1000, processor: processorSeconds() - before };
}

/** The median of each field, taken separately. */
function middle(values: readonly Spent[]): Spent {
  const of = (key: keyof Spent): number =>
    values.map((value) => value[key]).sort((a, b) => a - b)[Math.floor(values.length / 2)]!;
  return { seconds: of("seconds"), processor: of("processor") };
}
