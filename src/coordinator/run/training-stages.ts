import { formatBytes } from "../../common/bytes.ts";
import { elementCount } from "../../common/dtype.ts";
import { PipeloraError, toPipeloraError } from "../../common/errors.ts";
import { Interrupted, type StopSignal } from "../../common/exit-codes.ts";
import type { Logger } from "../../common/log.ts";
import { matrixElements } from "../../models/kinds/named-matrix.ts";
import type { Work } from "../../plan/request.ts";
import { formatPlan, planJson } from "../../plan/shown/format-plan.ts";
import { STATE_PARTS } from "../../rpc/state-parts.ts";
import { loadShards } from "../assembly/load-shards.ts";
import { type PlannedMembers, planMembers } from "../assembly/plan-members.ts";
import { type NodeSave, nodesJson } from "../cluster/node-folders.ts";
import type { PipelineAdapter } from "../cluster/pipeline.ts";
import type { ModelSetup } from "../planning/model-setup.ts";
import { besideCache, type CacheNeeds, type Workload } from "../planning/workload.ts";
import type { AdapterRun } from "./adapter-run.ts";
import type { Done, Planned, Prepared, Regroup, Stages, Stepping } from "./attempt.ts";
import { describeFailure } from "./checkpoints/run-files.ts";
import { copyState, type TrainerState } from "./checkpoints/trainer-state.ts";
import { ElasticSteps } from "./elastic/elastic-steps.ts";
import { quietHeap } from "./quiet-heap.ts";
import type { LiveReplies, Progress } from "./replies/live-replies.ts";
import type { Run } from "./run.ts";
import { predictedBesideMeasured } from "./run-report.ts";
import { INITIAL_LOSS_SCALE } from "./steps/loss-scale.ts";
import { receive } from "./steps/receive.ts";
import { type RoundHooks, type Trained, trainRounds } from "./steps/rounds.ts";
import { evaluationOf, stepSource } from "./steps/step-source.ts";
import { StepTraces } from "./tracing/step-traces.ts";
import { StepWatch } from "./tracing/step-watch.ts";
import { summarise, Trainer, type TrainerOptions } from "./trainer.ts";
import { liveOf, workloadOf } from "./workload-of.ts";

/** The work of an attempt at this run in each state. */
export function trainingStages(run: Run): Stages {
  return {
    gathering: () => gather(run),
    planned: (state) => load(run, state),
    prepared: (state) => begin(run, state),
    stepping: (state) => step(run, state),
  };
}

/** The progress of an attempt's adapters, for replies. */
function progressOf(
  { adapters }: Run,
  live: readonly AdapterRun[],
  states: readonly Pick<TrainerState, "globalStep">[],
): Progress[] {
  return live.map((adapter, number) => ({ index: adapters.indexOf(adapter), step: states[number]!.globalStep }));
}

async function gather(run: Run): Promise<Planned> {
  const { config, base, cluster, replies, changes } = run;
  const members = await cluster.form({ atLeast: changes?.atLeast ?? 1, short: async () => void (await saveHeld(run)) });
  changes?.gathered();
  await receive(members, run);
  const live = liveOf(run);
  const { workload, beside } = workloadOf(run);
  const known = changes?.rates ?? null;
  const plan = (work: Workload) =>
    planMembers(members, live[0]?.setup ?? base, { workload: work, beside, known }, live[0]?.config ?? config);
  const found =
    replies === null
      ? { planned: await plan(workload), cacheRows: 0 }
      : await planBesideReplies(replies, (room) => plan(besideCache(workload, room)));
  for (const [index, adapter] of live.entries()) adapter.cut = found.planned.cut.parts[index]!;
  showPlan(found.planned, run);
  return { name: "planned", ...found };
}

/** An adapter's step that was saved. */
interface SavedStep {
  readonly name: string | null;
  readonly step: number;
}

export function interruptedAfter(signal: StopSignal, saved: readonly SavedStep[]): Interrupted {
  const steps = saved.map(({ name, step }) => `step ${step}${name === null ? "" : ` of ${name}`}`);
  return new Interrupted(
    signal,
    `interrupted after ${steps.join(", ")}, which ${steps.length === 1 ? "is" : "are"} saved`,
    "Continue with --resume-from-checkpoint.",
  );
}

/** Saves steps that an elastic run holds only in memory, before it waits or ends. Returns what was saved. */
export async function saveHeld(run: Run): Promise<SavedStep[]> {
  const saved: SavedStep[] = [];
  for (const adapter of liveOf(run)) {
    // The nodes of the last attempt are gone.
    adapter.files.detach();
    const step = await adapter.saveHeld();
    if (step !== null) saved.push({ name: adapter.name, step });
  }
  return saved;
}

/** Plans with as large a cache for replies as fits beside the training. */
async function planBesideReplies(
  replies: LiveReplies,
  plan: (room: Pick<CacheNeeds, "sequences" | "rows">) => Promise<PlannedMembers>,
): Promise<{ planned: PlannedMembers; cacheRows: number }> {
  const rooms = replies.rooms();
  for (const [index, room] of rooms.entries()) {
    try {
      return { planned: await plan(room), cacheRows: room.rows };
    } catch (error) {
      if (toPipeloraError(error).code !== "PL_PLACEMENT_INFEASIBLE" || index + 1 === rooms.length) throw error;
    }
  }
  throw new PipeloraError("PL_INTERNAL", "no room for replies was tried");
}

async function load(run: Run, { planned, cacheRows }: Planned): Promise<Prepared> {
  const { config, base, cluster, log, changes } = run;
  const adapters = liveOf(run).map(({ config: settings, setup, files }) => {
    return { lora: setup.lora, settings, initialise: setup.adapter === null, groups: files.groups.of };
  });
  const { pipeline, prepared } = await loadShards(planned, base, config, { adapters, failure: cluster.failure });
  for (const [rank, { memory, seconds, takenOver, read, readBytes }] of prepared.entries()) {
    const layers = `${takenOver} layers taken over, ${read} read (${formatBytes(readBytes)})`;
    log.debug({ rank, memory }, `rank ${rank} is loaded after ${seconds.toFixed(1)} s: ${layers}`);
  }
  changes?.loaded(prepared);
  return { name: "prepared", planned, cacheRows, pipeline };
}

/** Sends each adapter's starting values to the ranks, and returns its state. */
async function begin(run: Run, { planned, cacheRows, pipeline }: Prepared): Promise<Stepping> {
  const { replies } = run;
  const progress: TrainerState[] = [];
  for (const [number, adapter] of liveOf(run).entries()) {
    const { reporter } = adapter;
    const { state, values } = await adapter.start();
    const own = pipeline.adapter(number);
    // Twins have no first values of their own.
    const twins = adapter.setup.lora!.matrices.flatMap(({ name, twin }) => (twin === undefined ? [] : [name]));
    if (values !== null) await own.importMatrices(values);
    else if (twins.length > 0) await own.importMatrices(await own.exportMatrices(["weight"], twins));
    if (run.changes !== null) adapter.initial = await pipeline.adapter(number).exportMatrices(["initial"]);
    if (planned.computeDtype === "float16") state.lossScale ??= INITIAL_LOSS_SCALE;
    if (state.globalStep > 0) reporter.note(`${adapter.holds ? "goes on" : "resumed"} after step ${state.globalStep}`);
    progress.push(state);
  }
  const stages = new Set(planned.plan.segments.flatMap(({ ranks }) => ranks)).size;
  const { tokens: batchTokens } = await planned.cut.work(false);
  await replies?.placed({ pipeline, rows: cacheRows, stages, batchTokens }, progressOf(run, liveOf(run), progress));
  return { name: "stepping", planned, pipeline, progress };
}

async function step(run: Run, stepping: Stepping): Promise<Done | Regroup> {
  const { cluster, interrupts, reporter, replies, changes } = run;
  const { planned, pipeline, progress } = stepping;
  quietHeap();
  const evaluationSeconds: number[] = [];
  cluster.health.ready = true;
  const works = await Promise.all(planned.cut.parts.map((part) => part.work(false)));
  const live = liveOf(run);
  const trained = live.map((adapter, number): Trained => {
    const options = trainerOptions(run, adapter, { stepping, number, work: works[number]!, evaluationSeconds });
    return { number, adapter, trainer: new Trainer(options, progress[number]!) };
  });
  const traces = stepTraces(run, stepping, await planned.cut.work(false));
  const elastic = changes === null ? null : new ElasticSteps(run, changes, stepping, live);
  const hooks: RoundHooks = {
    pause: async () => {
      if (interrupts.signal !== null) return "save";
      if (elastic !== null) return (await elastic.regroups()) ? "hold" : null;
      return cluster.leaving === null ? null : "save";
    },
    tells: (round, going) => elastic?.tells(round, going) ?? false,
    asked: () => replies?.asked === true,
    traced: (round, isLast) => traces.wants(round, isLast),
    stepped: async (round, told) => {
      elastic?.stepped(told.began);
      await traces.stepped(round, told, { members: planned.members, pipeline });
    },
    answer: async () => replies?.answer(progressOf(run, live, progress), reporter),
  };
  const finished = await cluster.untilSafePoint(() => trainRounds(trained, pipeline, hooks));
  if (!finished) {
    if (interrupts.signal === null) {
      const left = `${cluster.leaving?.name} leaves, all steps are saved; waiting for its return`;
      return { name: "regroup", reason: elastic?.reason ?? left };
    }
    const steps = live.flatMap(({ name, live: goesOn }, index) =>
      goesOn ? [{ name, step: progress[index]!.globalStep }] : [],
    );
    throw interruptedAfter(interrupts.signal, steps);
  }
  await traces.finish({ members: planned.members, pipeline });
  const { plan, cut, speeds } = planned;
  const measured = { reports: await pipeline.report(), evaluationSeconds };
  const { text, value } = predictedBesideMeasured(plan, measured, await cut.work(false), speeds);
  if (live.some(({ error }) => error === null)) reporter.predictions(text, value);
  return { name: "done" };
}

/** Decides what this attempt's ranks record of their steps. */
function stepTraces({ trace, reporter, watched }: Run, { planned }: Stepping, work: Work): StepTraces {
  const { plan, speeds } = planned;
  const watch = new StepWatch({
    ...{ looked: watched, reporter },
    measured: (reports) => predictedBesideMeasured(plan, { reports, evaluationSeconds: [] }, work, speeds).value,
  });
  const traces = new StepTraces(trace, watch);
  traces.begin();
  return traces;
}

interface AttemptOf {
  readonly stepping: Stepping;
  readonly number: number;
  /** This adapter's own, so that an evaluation is cut as in a run of this adapter alone. */
  readonly work: Work;
  /** Seconds of this attempt's evaluations. New ones are added. */
  readonly evaluationSeconds: number[];
}

function trainerOptions(
  run: Run,
  adapter: AdapterRun,
  { stepping, number, work, evaluationSeconds }: AttemptOf,
): TrainerOptions {
  const { log, replies } = run;
  const { config, setup, data, files, reporter } = adapter;
  const { replicas, parts } = stepping.planned.cut;
  const pipeline = stepping.pipeline.adapter(number);
  const before = stepping.progress[number]!.globalStep;
  const began = adapter.beginning(before);
  return {
    config,
    pipeline,
    source: stepSource(data, setup.spec, parts[number]!.size, replicas),
    evaluation:
      data.evaluation === null
        ? null
        : evaluationOf(data.evaluation, config.per_device_eval_batch_size, work.tokens, replicas),
    rate: files.rate,
    groups: files.groups.groups,
    flosPerToken: flosPerToken(setup),
    reporter,
    hooks: {
      evaluated: async (step) => replies?.sample({ index: run.adapters.indexOf(adapter), step }, reporter),
      hold: async (current) => {
        adapter.hold({ state: copyState(current), values: await pipeline.exportMatrices(STATE_PARTS) });
      },
      save: async (current, stopping) => {
        const values = await pipeline.exportMatrices(files.savedParts);
        const saved = await files.write(values, current, stopping);
        if (run.changes !== null && !config.save_only_model) {
          adapter.hold({ state: copyState(current), values: values.filter(({ part }) => part !== "initial") });
        }
        reporter.saved(saved, current.globalStep);
        warnOfNodes(`checkpoint-${current.globalStep}`, saved.nodes, log);
      },
      finish: async (state) => {
        const seconds = (performance.now() - began.time) / 1000;
        const steps = Math.max(1, state.globalStep - began.step);
        const samples = data.train.size * data.order.totalEpochs;
        evaluationSeconds.push(
          ...state.logHistory.flatMap(({ step, eval_runtime: took }) =>
            step > before && typeof took === "number" ? [took] : [],
          ),
        );
        await finish(adapter, pipeline, state, { took: { seconds, samples, steps }, log });
      },
    },
  };
}

/** Saves the adapter and reports the run's times. */
async function finish(
  adapter: AdapterRun,
  pipeline: PipelineAdapter,
  state: TrainerState,
  { took, log }: { readonly took: Took; readonly log: Logger },
): Promise<void> {
  const { files, reporter } = adapter;
  const summary = summarise(state, reporter, took);
  const { nodes, best } = await files.finish(pipeline, state);
  if (best !== null) reporter.note(`the adapter is that of ${best}, the best of all evaluations (${state.bestMetric})`);
  warnOfNodes("the adapter", nodes, log);
  reporter.end({ ...summary, output_dir: files.outputDir, ...(nodes.length > 0 ? { nodes: nodesJson(nodes) } : {}) });
  adapter.done();
}

interface Took {
  readonly seconds: number;
  readonly samples: number;
  readonly steps: number;
}

function warnOfNodes(save: string, nodes: readonly NodeSave[], log: Logger): void {
  for (const node of nodes) {
    if (node.error !== null) log.error(describeFailure(save, node));
  }
}

function showPlan({ plan, links, members }: PlannedMembers, { base, reporter, warn }: Run): void {
  const layers = base.spec.layers.map(({ name }) => name);
  const ranks = members.map(({ hello: { node, device, deviceName, memoryBytes } }, rank) => ({
    ...{ rank, node, device, name: deviceName, memory_bytes: memoryBytes },
  }));
  reporter.plan(formatPlan({ ...plan, warnings: [] }, layers, links), { ...planJson(plan, links), layers, ranks });
  for (const warning of plan.warnings) warn(warning);
}

/** FLOP of a token as the Trainer counts them: six for each parameter outside embeddings, adapters and both copies of a trained head included. */
function flosPerToken({ spec, lora }: ModelSetup): number {
  const embedding = spec.layers.find((layer) => layer.kind === "embedding")!.weight;
  const base = spec.tensors
    .filter(({ kind, name }) => kind === "parameter" && name !== embedding)
    .reduce((sum, { shape }) => sum + elementCount(shape), 0);
  const own = lora!.matrices.filter(({ name }) => name !== embedding && !name.endsWith(".bias"));
  return 6 * (base + matrixElements(own));
}
