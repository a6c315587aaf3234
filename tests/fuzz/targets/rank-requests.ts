import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { bytesOf } from "../../../src/common/bytes.ts";
import { isErrorCode } from "../../../src/common/errors.ts";
import { createLogger } from "../../../src/common/log.ts";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import { loadEngine } from "../../../src/engine/index.ts";
import { openCheckpoint } from "../../../src/formats/checkpoint.ts";
import { checkpointFingerprint } from "../../../src/formats/fingerprint.ts";
import { readModelSpec } from "../../../src/models/index.ts";
import type { ModelSpec } from "../../../src/models/spec.ts";
import type { FromWorker } from "../../../src/rpc/generated/pipelora/v1/FromWorker.ts";
import type { ToWorker } from "../../../src/rpc/generated/pipelora/v1/ToWorker.ts";
import { decodeRequest, encodeRequest } from "../../../src/rpc/protocol.ts";
import { NO_TRUST } from "../../../src/rpc/trust.ts";
import { RankLinks } from "../../../src/worker/links.ts";
import { OutputFolders } from "../../../src/worker/node/node-files.ts";
import { Rank } from "../../../src/worker/rank.ts";
import { HeldLayers } from "../../../src/worker/weights/held-layers.ts";
import { kindsOf, strangeMessage } from "../proto-messages.ts";
import type { Random } from "../random.ts";
import type { FuzzTarget } from "../target.ts";

const Q_PROJ = "model.layers.0.self_attn.q_proj";
const MODEL = join(PACKAGE_ROOT, "tests", "fixtures", "goldens", "qwen2-gqa-tied", "model");
/** Far above what an answer takes on a busy machine; a tensor that never comes takes LINK_S. */
const ANSWER_MS = 30_000;
const LINK_S = 1;
// Models that a message names are looked for in the cache alone.
process.env["HF_HUB_OFFLINE"] = "1";

/** A request that this rank, alone with the whole model, can serve. */
async function goodPrepare(): Promise<object> {
  const spec = await readModelSpec(MODEL);
  const blocks = spec.layers.length;
  return {
    modelDir: MODEL,
    modelFingerprint: await checkpointFingerprint(await openCheckpoint(MODEL, spec)),
    ...{ holdDtype: "float32", computeDtype: "float32", threads: 1, arenaBytes: 64 << 20, schedule: "1f1b" },
    segments: [{ index: 0, ranks: [0], firstLayer: 0, lastLayer: blocks - 1, needsBackward: true }],
    adapters: [2, 3].map((r) => goodAdapter(r, spec)),
    ...{ linkTimeoutS: LINK_S, quantization: { method: "none" }, pipelineRanks: [0] },
  };
}

function goodAdapter(r: number, { shape }: ModelSpec): object {
  return {
    lora: [{ moduleId: 0, module: Q_PROJ, r, scale: 1, in: shape.hidden, out: shape.heads * shape.headDim }],
    matrices: ["A", "B"].map((matrix) => ({ name: `${Q_PROJ}.lora_${matrix}.weight` })),
    ...{ seed: 7, loraInit: { kind: "kaiming" } },
  };
}

/** Micro-batches of two rows, as a step has them. */
function goodRound(): object {
  const values = (...all: number[]) => bytesOf(Int32Array.from(all));
  const draw = {
    sequence: 1,
    temperature: 0.7,
    topP: 0.9,
    topK: 5,
    repetitionPenalty: 1.1,
    seen: values(5, 6),
    draw: 77,
  };
  return {
    ...{ round: 1, counts: values(3, 2), slots: values(1, 0), starts: values(4, 0), past: values(0, 0) },
    ...{ lengths: values(3, 2), tokens: values(5, 6, 7, 8, 9), draws: [draw] },
  };
}

function goodBatches(): object {
  const tokens = Int32Array.of(5, 6, 7, 8, 9, 10);
  return {
    ...{
      batchRows: bytesOf(Int32Array.of(2)),
      rowTokens: bytesOf(Int32Array.of(4, 2)),
      rowIds: bytesOf(Int32Array.of(0, 1)),
    },
    tokens: bytesOf(tokens),
    targets: bytesOf(tokens.map((token, at) => (at === 3 || at === 5 ? -100 : token + 1))),
    weights: bytesOf(new Float32Array(6).fill(0.25)),
  };
}

function goodPart(adapter: number): object {
  return { adapter, step: 1, microBatches: goodBatches(), lossScale: 1 };
}

async function goodRequest(random: Random): Promise<ToWorker> {
  const groups = [{ learningRate: 1e-3, weightDecay: 0 }];
  const adam = { groups, gradScale: 1, beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
  const requests: (() => object | Promise<object>)[] = [
    async () => ({ prepare: await goodPrepare() }),
    () => ({ runStep: { step: 1, parts: [0, 1].map(goodPart) } }),
    () => ({ evaluate: { microBatches: goodBatches(), adapter: 1 } }),
    () => ({ applyUpdate: { step: 1, ...adam } }),
    () => ({ exportMatrices: { parts: ["weight"] } }),
    () => ({ openCache: { sequences: 2, rows: 9 } }),
    () => ({ infer: goodRound() }),
    () => ({ reportRank: {} }),
    () => ({ readClock: {} }),
    () => ({ outputFolder: { action: "mark", dir: "out", mark: "m", marks: ["m"] } }),
    () => ({ writeFile: { save: "checkpoint-1", name: "a.txt", offset: 0, data: Buffer.from("a") } }),
    () => ({ commitFiles: { save: "checkpoint-1", files: [], dropped: [] } }),
    () => ({ listCheckpoints: {} }),
  ];
  return (await random.pick(requests)()) as ToWorker;
}

/** One field, or one within, takes the value that a strange message of the same kind has. */
function disturbed(random: Random, good: Record<string, unknown>, strange: Record<string, unknown>): object {
  const keys = Object.keys(strange);
  if (keys.length === 0) return good;
  const key = random.pick(keys);
  const [own, other] = [good[key], strange[key]];
  const nested = isPlain(own) && isPlain(other) && random.chance(0.7);
  return { ...good, [key]: nested ? disturbed(random, own, other) : other };
}

const isPlain = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value) && !ArrayBuffer.isView(value);

/** Requests in the order of a run, or in none, some of them as they should be, others changed in one place, others of nothing but strange values. */
async function requests(random: Random): Promise<ToWorker[]> {
  const all: ToWorker[] = [];
  if (random.chance(0.8)) all.push({ prepare: (await goodPrepare()) as never });
  const count = random.between(1, 5);
  for (let made = 0; made < count; made++) {
    const good = (await goodRequest(random)) as Record<string, unknown>;
    const [kind] = Object.keys(good) as [string];
    const strange = strangeMessage(
      random,
      "ToWorker",
      random.chance(0.7) ? kind : random.pick(kindsOf("ToWorker")),
    ) as Record<string, unknown>;
    const { request: _, ...body } = strange;
    const own = body[kind];
    if (random.chance(0.25)) all.push(good as ToWorker);
    else if (isPlain(own) && random.chance(0.7)) {
      all.push({ [kind]: disturbed(random, good[kind] as Record<string, unknown>, own) } as ToWorker);
    } else all.push(body as ToWorker);
  }
  return all;
}

/** Whether a request is answered: what only begins something, or ends the session, is not. */
function isAnswered(message: ToWorker): boolean {
  const silent = ["welcome", "shutdown", "matrixTensor", "importMatrices"];
  return !silent.some((kind) => message[kind as keyof ToWorker] !== undefined);
}

/** What a coordinator, or whoever has its certificate, may say to a rank. */
export const rankRequests: FuzzTarget = {
  name: "rank-requests",
  async make(random, dir) {
    const encoded = (await requests(random)).map((message, index) =>
      Buffer.from(encodeRequest({ ...message, request: index + 1 } as ToWorker)).toString("base64"),
    );
    writeFileSync(join(dir, "requests.json"), JSON.stringify(encoded));
  },
  async check(dir) {
    const encoded = JSON.parse(readFileSync(join(dir, "requests.json"), "utf8")) as string[];
    const own = join(dir, "node");
    mkdirSync(own, { recursive: true });
    const links = new RankLinks({ addon: loadEngine(), device: "cpu", trust: NO_TRUST, note: () => {} });
    const over = new AbortController();
    const replies: FromWorker[] = [];
    let heard: () => void = () => {};
    const rank = new Rank({
      device: "cpu",
      links,
      outputs: new OutputFolders(own),
      folders: { modelDir: null, outputDir: own },
      log: createLogger({ level: "silent", format: "json" }),
      held: new HeldLayers(),
      send: (message) => {
        replies.push(message);
        heard();
      },
      ...{ onWelcome: () => {}, onCollected: () => {}, onPrepared: () => {}, onShutdown: () => {} },
      signal: over.signal,
    });
    const answered = (request: number) =>
      replies.some(({ replyTo, matrixTensor }) => replyTo === request && !matrixTensor);
    try {
      rank.handle(
        decodeRequest(
          encodeRequest({ request: 0, welcome: { session: "s", rank: 0, worldSize: 1, heartbeatMs: 1000 } }),
        ),
      );
      for (const text of encoded) {
        const message = decodeRequest(Buffer.from(text, "base64"));
        rank.handle(message);
        if (message.body === undefined || !isAnswered({ [message.body]: {} } as ToWorker)) continue;
        const until = performance.now() + ANSWER_MS;
        while (!answered(message.request)) {
          if (performance.now() > until) throw new Error(`${message.body} got no answer in ${ANSWER_MS / 1000} s`);
          await new Promise<void>((resolve) => {
            heard = resolve;
            setTimeout(resolve, 1000);
          });
        }
      }
    } finally {
      over.abort(new Error("the input is over"));
      links.close();
      await rank.end();
    }
    for (const { failure } of replies) {
      if (failure && (!isErrorCode(failure.code!) || failure.code === "PL_INTERNAL")) {
        throw new Error(`it answered ${failure.code}: ${failure.message}`);
      }
    }
  },
};
