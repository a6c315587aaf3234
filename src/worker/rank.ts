import { bytesOf, float32Of } from "../common/bytes.ts";
import { PipeloraError } from "../common/errors.ts";
import type { Logger } from "../common/log.ts";
import { type Engine, loadEngine, type MatrixPart } from "../engine/index.ts";
import type { Calibrate__Output } from "../rpc/generated/pipelora/v1/Calibrate.ts";
import type { Evaluate__Output } from "../rpc/generated/pipelora/v1/Evaluate.ts";
import type { ExportMatrices__Output } from "../rpc/generated/pipelora/v1/ExportMatrices.ts";
import type { FromWorker } from "../rpc/generated/pipelora/v1/FromWorker.ts";
import type { MemoryReport } from "../rpc/generated/pipelora/v1/MemoryReport.ts";
import type { Prepare__Output } from "../rpc/generated/pipelora/v1/Prepare.ts";
import type { ProbeLink__Output } from "../rpc/generated/pipelora/v1/ProbeLink.ts";
import type { Shutdown__Output } from "../rpc/generated/pipelora/v1/Shutdown.ts";
import type { ToWorker__Output } from "../rpc/generated/pipelora/v1/ToWorker.ts";
import { toFailure } from "../rpc/wire-error.ts";
import { calibrate } from "./calibration.ts";
import { Inference } from "./inference.ts";
import { probeLink } from "./link-probe.ts";
import type { RankLinks } from "./links.ts";
import type { OutputFolders } from "./node/node-files.ts";
import { processorSeconds } from "./node/processor-time.ts";
import { inspectNode, type OwnFolders } from "./preflight.ts";
import { type EngineHost, type PreparedRank, prepareRank } from "./prepare.ts";
import { RankInputs } from "./steps/input-study.ts";
import { unpackMicroBatches } from "./steps/micro-batches.ts";
import { applyUpdate, given, preparedAdapter, runRound } from "./steps/round.ts";
import { StepRelay } from "./steps/step-relay.ts";
import { runInstructions } from "./steps/step-runner.ts";
import { TimeSums } from "./steps/time-sums.ts";
import { clockMs, Trace } from "./steps/trace.ts";
import type { HeldLayers } from "./weights/held-layers.ts";
import { type ModelRequest, NodeModel } from "./weights/node-model.ts";

export interface RankOptions {
  readonly device: string;
  readonly links: RankLinks;
  readonly outputs: OutputFolders;
  readonly folders: OwnFolders;
  readonly log: Logger;
  readonly send: (message: FromWorker) => void;
  readonly onWelcome: (heartbeatMs: number, rank: number) => void;
  /** Called when this rank's results reach the coordinator through another rank. */
  readonly onCollected: () => void;
  /** Called when its shard is loaded. */
  readonly onPrepared: () => void;
  readonly onShutdown: (request: Shutdown__Output) => void;
  /** Weights that the process keeps from one session to the next. */
  readonly held: HeldLayers;
  /** Aborted when the session ends: nothing need be finished then. */
  readonly signal: AbortSignal;
}

/** A limit for requests: no rank has this many links. */
const MOST_NCCL_IDS = 65_536;

type Reply = Omit<FromWorker, "replyTo">;

/** One rank: holds its segments and answers the coordinator's requests one at a time, in order. */
export class Rank {
  readonly #options: RankOptions;
  #queue: Promise<void> = Promise.resolve();
  #session = "";
  #run = "";
  #rank = 0;
  #prepared: PreparedRank | null = null;
  #passes = 0;
  #times = new TimeSums();
  #trace = new Trace();
  #relay: StepRelay | null = null;
  /** Tensors still to come for an ImportMatrices request. */
  #importing: { request: number; left: number; shelf: number; adapter: number } | null = null;
  #inference: Inference | null = null;
  #inputs: RankInputs | null = null;

  constructor(options: RankOptions) {
    this.#options = options;
  }

  handle(message: ToWorker__Output): void {
    if (message.body === "shutdown") {
      this.#options.onShutdown(message.shutdown!);
      return;
    }
    const { signal } = this.#options;
    this.#queue = this.#queue.then(async () => {
      if (signal.aborted) return;
      const answered = this.#reply(message);
      // Rounds of generation overlap. Any other request waits until they are done.
      if (message.body !== "infer") await answered;
    });
  }

  async #reply(message: ToWorker__Output): Promise<void> {
    const { signal } = this.#options;
    try {
      if (message.body !== "infer") await this.#inference?.idle();
      const reply = await this.#answer(message);
      if (reply !== null) this.#options.send({ ...reply, replyTo: message.request });
    } catch (error) {
      // Work that was running when this process was told to end fails for that reason.
      const level = signal.aborted ? "debug" : "error";
      this.#options.log[level]({ error }, `${message.body} failed: ${(error as Error).message}`);
      this.#options.send({ replyTo: message.request, failure: toFailure(error) });
    }
  }

  /** Ends the rank for good, after `signal` was aborted. Resolves when running work and the engine have ended. */
  async end(): Promise<void> {
    // The engine finishes what it has begun. Later calls to it fail.
    await this.#release();
    await this.#queue;
    await this.#release();
  }

  async #release(): Promise<void> {
    this.#relay?.end();
    this.#relay = null;
    this.#inference = null;
    this.#inputs = null;
    const prepared = this.#prepared;
    this.#prepared = null;
    await prepared?.leave();
  }

  async #answer(message: ToWorker__Output): Promise<Reply | null> {
    switch (message.body) {
      case "welcome":
        if (this.#session !== "") throw new PipeloraError("PL_PROTOCOL_MISMATCH", "a second Welcome came");
        this.#session = message.welcome!.session;
        this.#run = message.welcome!.run;
        this.#rank = message.welcome!.rank;
        this.#options.onWelcome(message.welcome!.heartbeatMs, this.#rank);
        return null;
      case "calibrate":
        return this.#calibrate(message.calibrate!);
      case "probeLink":
        return this.#probe(message.probeLink!);
      case "prepare":
        return this.#prepare(message.prepare!);
      case "runStep":
        return this.#runStep(message);
      case "reportRank":
        return {
          rankReport: {
            memory: await memoryReport(this.#ready().engine),
            steps: this.#times.steps,
            times: this.#times.sums,
            spans: this.#trace.take(),
          },
        };
      case "readClock": {
        const receivedMs = clockMs();
        return { clock: { receivedMs, sentMs: clockMs() } };
      }
      case "applyUpdate":
        await applyUpdate(this.#ready(), message.applyUpdate!, message.applyUpdate!.adapter);
        return { done: {} };
      case "evaluate":
        return this.#evaluate(message.evaluate!);
      case "readInputs":
        for (const matrixTensor of this.#inputs?.read(message.readInputs!.modules) ?? []) {
          this.#options.send({ replyTo: message.request, matrixTensor });
        }
        return { done: {} };
      case "exportMatrices":
        return this.#export(message.request, message.exportMatrices!);
      case "importMatrices": {
        const { tensors, shelf, adapter } = message.importMatrices!;
        this.#importing = { request: message.request, left: tensors, shelf, adapter };
        if (shelf > 0) this.#inferring().shelf.open(shelf);
        return this.#importing.left === 0 ? { done: {} } : null;
      }
      case "matrixTensor":
        return this.#importTensor(message);
      case "preflight":
        return {
          preflightReport: await inspectNode(
            message.preflight!,
            this.#options.folders,
            loadEngine().capabilities(),
            this.#options,
          ),
        };
      case "outputFolder":
        return { outputFolder: await this.#options.outputs.of(message.outputFolder!).folder(message.outputFolder!) };
      case "writeFile":
        await this.#options.outputs.of(message.writeFile!).write(message.writeFile!);
        return { done: {} };
      case "commitFiles":
        await this.#options.outputs.of(message.commitFiles!).commit(message.commitFiles!);
        return { done: {} };
      case "listCheckpoints":
        return { checkpoints: { checkpoints: await this.#options.outputs.of(message.listCheckpoints!).list() } };
      case "readFile":
        return { fileChunk: { data: await this.#options.outputs.of(message.readFile!).read(message.readFile!) } };
      case "makeNcclIds": {
        const { count } = message.makeNcclIds!;
        if (count > MOST_NCCL_IDS) throw new PipeloraError("PL_PROTOCOL_MISMATCH", `${count} NCCL ids were asked for`);
        return { ncclIds: { ids: Array.from({ length: count }, () => Buffer.from(loadEngine().ncclUniqueId())) } };
      }
      case "openCache":
        await this.#inferring().open(message.openCache!);
        return { done: {} };
      case "infer": {
        const inferResult = await this.#inferring().run(message.infer!);
        return inferResult === null ? null : { inferResult };
      }
      default:
        throw new PipeloraError("PL_PROTOCOL_MISMATCH", `a request of unknown kind "${message.body}" came`);
    }
  }

  #host(): EngineHost {
    const { device, signal } = this.#options;
    return { device, addon: loadEngine(), signal };
  }

  /** The surroundings of an engine that trains. An engine that only measures keeps no weights. */
  #keepingHost(): EngineHost {
    if (this.#run === "") return this.#host();
    return { ...this.#host(), kept: { held: this.#options.held, run: this.#run } };
  }

  #model(request: ModelRequest): Promise<NodeModel> {
    return NodeModel.find(this.#options.folders.modelDir, request, this.#options);
  }

  #ready(): PreparedRank {
    if (this.#prepared === null) throw new PipeloraError("PL_PROTOCOL_MISMATCH", "a request came before Prepare");
    return this.#prepared;
  }

  async #calibrate(request: Calibrate__Output): Promise<Reply> {
    const model = await this.#model(given(request.prepare, "a Prepare"));
    return { calibrated: await calibrate(request, model, this.#rank, this.#host()) };
  }

  async #probe(request: ProbeLink__Output): Promise<Reply> {
    const { links } = this.#options;
    // A session of its own: a rank that is prepared before its peer must not connect to the peer's old links.
    const session = `${this.#session}/probe`;
    if (!links.joined(session)) {
      links.join({ session, rank: this.#rank }, request.peers, request.linkTimeoutS * 1000);
    }
    return { linkProbed: await probeLink(links, request, this.#rank, `probe/${request.from}/${request.to}`) };
  }

  async #prepare(request: Prepare__Output): Promise<Reply> {
    const started = performance.now();
    await this.#release();
    const place = { session: this.#session, rank: this.#rank };
    this.#options.links.join(place, request.peers, request.linkTimeoutS * 1000, {
      ranks: request.replicaRanks,
      id: request.replicaNccl,
    });
    this.#options.log.debug(`loading the shard of rank ${this.#rank}`);
    this.#prepared = await prepareRank(request, await this.#model(request), this.#rank, this.#keepingHost());
    await this.#options.links.opened();
    this.#times = new TimeSums();
    this.#trace = new Trace();
    if (request.pipelineRanks.length > 0) this.#listen(request.pipelineRanks);
    const seconds = (performance.now() - started) / 1000;
    this.#options.onPrepared();
    const { engine, loaded } = this.#prepared;
    return { prepared: { memory: await memoryReport(engine), seconds, ...loaded } };
  }

  /** Runs a step. Resolves with null if this rank passes its sums on and another rank answers. */
  async #runStep(message: ToWorker__Output): Promise<Reply | null> {
    const prepared = this.#ready();
    const request = message.runStep!;
    const relay = given(this.#relay, "a pipeline in its Prepare");
    const started = performance.now();
    const busy = prepared.engine.busySeconds();
    const processor = processorSeconds();
    const passedOn = relay.passOn(message);
    // Awaited below. If the step fails first, that failure is reported instead.
    passedOn.catch(() => {});
    const trace = request.trace ? this.#trace.step(request.step) : null;
    const name = `step ${request.step}/${this.#passes++}`;
    const { parts, totals } = await runRound(prepared, this.#options.links, {
      ...{ rank: this.#rank, name, parts: request.parts, trace },
      tell: request.tellsState
        ? (adapter, tensors) =>
            this.#options.send({ replyTo: 0, boundaryState: { round: request.step, adapter, tensors: [...tensors] } })
        : null,
    });
    const { waitMs, reduceMs, sentBytes, linkMs } = totals;
    const totalMs = performance.now() - started;
    const computeMs = (prepared.engine.busySeconds() - busy) * 1000;
    const processorMs = ((processorSeconds() - processor) * 1000) / prepared.threads;
    this.#times.add({ totalMs, computeMs, waitMs, reduceMs, sentBytes, linkMs, processorMs });
    await passedOn;
    const sums = await relay.collect(name, { parts });
    if (sums !== null) return { stepResult: sums };
    this.#options.onCollected();
    return null;
  }

  #listen(pipelineRanks: readonly number[]): void {
    const relay = new StepRelay(this.#options.links, pipelineRanks, this.#rank);
    this.#relay = relay;
    relay
      .listen((message) => this.handle(message))
      .catch((error: unknown) => this.#options.send({ replyTo: 0, failure: toFailure(error) }));
  }

  async #evaluate({ microBatches, adapter, study }: Evaluate__Output): Promise<Reply> {
    const prepared = this.#ready();
    const { regularisation } = preparedAdapter(prepared, adapter);
    const pass = { step: 0, training: false, lossScale: 1, ...regularisation };
    const batches = unpackMicroBatches(given(microBatches, "micro-batches"), pass);
    const run = () =>
      runInstructions(prepared, this.#options.links, {
        name: `evaluate/${this.#passes++}`,
        instructions: prepared.instructions(batches.length, "evaluate"),
        parts: [{ batches, before: null, after: null }],
        trace: null,
      });
    if (study === null) return { evaluateResult: { losses: (await run()).losses[0]! } };
    this.#inputs ??= new RankInputs(prepared.engine, loadEngine(), prepared.threads);
    const { made, fits } = await this.#inputs.over(study, run);
    return { evaluateResult: { losses: made.losses[0]!, fits } };
  }

  async #export(request: number, { parts, adapter, names: asked }: ExportMatrices__Output): Promise<Reply> {
    const prepared = this.#ready();
    const { engine } = prepared;
    const { initial, names } = preparedAdapter(prepared, adapter);
    for (const name of names) {
      if (asked.length > 0 && !asked.includes(name)) continue;
      for (const part of parts as (MatrixPart | "initial")[]) {
        const values = part === "initial" ? initial.get(name) : await engine.getMatrix(name, part, adapter);
        if (values === undefined) continue;
        this.#options.send({ replyTo: request, matrixTensor: { name, part, values: bytesOf(values) } });
      }
    }
    return { done: {} };
  }

  async #importTensor(message: ToWorker__Output): Promise<Reply | null> {
    const { name, part, values } = message.matrixTensor!;
    // After a failure the rest of the import is dropped, because its request has been answered.
    if (this.#importing?.request !== message.request) return null;
    try {
      const own = float32Of(values);
      const { shelf, adapter } = this.#importing;
      if (shelf > 0) this.#inferring().shelf.put(shelf, name, own);
      else await this.#ready().engine.setMatrix(name, part as MatrixPart, own, adapter);
    } catch (error) {
      this.#importing = null;
      throw error;
    }
    this.#importing.left--;
    return this.#importing.left === 0 ? { done: {} } : null;
  }

  #inferring(): Inference {
    const prepared = this.#ready();
    const { pairSizes } = prepared.adapters[0]!;
    this.#inference ??= new Inference({ ...prepared, pairSizes, rank: this.#rank }, this.#options.links);
    return this.#inference;
  }
}

async function memoryReport(engine: Engine): Promise<MemoryReport> {
  const { allocatedBytes, takenBytes: deviceBytes } = await engine.deviceUse();
  const processPeakBytes = process.resourceUsage().maxRSS * 1024;
  return { ...engine.memory(), processPeakBytes, allocatedBytes, deviceBytes };
}
