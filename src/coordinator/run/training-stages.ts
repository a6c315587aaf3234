import { elementCount } from "../../common/dtype.ts";
import { PipeloraError, toPipeloraError } from "../../common/errors.ts";
import { Interrupted } from "../../common/exit-codes.ts";
import type { Logger } from "../../common/log.ts";
import { matrixElements } from "../../models/kinds/named-matrix.ts";
import { formatPlan, planJson } from "../../plan/format-plan.ts";
import type { Work } from "../../plan/request.ts";
import type { WorkerConnection } from "../../rpc/worker-connection.ts";
import { loadShards } from "../assembly/load-shards.ts";
import { type PlannedMembers, planMembers } from "../assembly/plan-members.ts";
import { type NodeSave, nodesJson } from "../cluster/node-folders.ts";
import type { ModelSetup } from "../planning/model-setup.ts";
import { besideCache, type Cut, trainingWorkload, type Workload } from "../planning/workload.ts";
import type { Done, Left, Planned, Prepared, Stages, Stepping } from "./attempt.ts";
import type { LiveReplies } from "./live-replies.ts";
import { INITIAL_LOSS_SCALE } from "./loss-scale.ts";
import { quietHeap } from "./quiet-heap.ts";
import { receive } from "./receive.ts";
import type { Run } from "./run.ts";
import { describeFailure } from "./run-files.ts";
import { predictedBesideMeasured } from "./run-report.ts";
import { evaluationOf, stepSource } from "./step-source.ts";
import { StepTraces } from "./tracing/step-traces.ts";
import { StepWatch } from "./tracing/step-watch.ts";
import { summarise, type TrainerOptions, trainSteps } from "./trainer.ts";

/** What an attempt at this run does in each state. `previous`: how the attempt before cut the steps. */
export function trainingStages(run: Run, previous: Cut | null): Stages {
  return {
    gathering: () => gather(run, previous),
    planned: (state) => load(run, state),
    prepared: (state) => begin(run, state),
    stepping: (state) => step(run, state),
  };
}

async function gather(run: Run, previous: Cut | null): Promise<Planned> {
  const { config, setup, data, cluster, replies } = run;
  const members = await cluster.form();
  await receive(members, run);
  const workload = { ...trainingWorkload(config, data), previous };
  const found =
    replies === null
      ? { planned: await planMembers(members, setup, workload, config), cacheRows: 0 }
      : await planBesideReplies(members, workload, run, replies);
  showPlan(found.planned, run);
  return { name: "planned", ...found };
}

/** With as much room for replies as fits beside the training. */
async function planBesideReplies(
  members: readonly WorkerConnection[],
  workload: Workload,
  { config, setup }: Run,
  replies: LiveReplies,
): Promise<{ planned: PlannedMembers; cacheRows: number }> {
  const rooms = replies.rooms();
  for (const [index, room] of rooms.entries()) {
    try {
      const planned = await planMembers(members, setup, besideCache(workload, room), config);
      return { planned, cacheRows: room.rows };
    } catch (error) {
      if (toPipeloraError(error).code !== "PL_PLACEMENT_INFEASIBLE" || index + 1 === rooms.length) throw error;
    }
  }
  throw new PipeloraError("PL_INTERNAL", "no room for replies was tried");
}

async function load({ config, setup, cluster, files, log }: Run, { planned, cacheRows }: Planned): Promise<Prepared> {
  const how = { initialise: setup.adapter === null, groups: files.groups.of, failure: cluster.failure };
  const { pipeline, prepared } = await loadShards(planned, setup, config, how);
  for (const [rank, { memory, seconds }] of prepared.entries()) {
    log.debug({ rank, memory }, `rank ${rank} is loaded after ${seconds.toFixed(1)} s`);
  }
  return { name: "prepared", planned, cacheRows, pipeline };
}

/** Hands out the values and the state that the run goes on from. */
async function begin({ files, reporter, replies }: Run, { planned, cacheRows, pipeline }: Prepared): Promise<Stepping> {
  const { state: progress, values } = await files.start();
  if (values !== null) await pipeline.importMatrices(values);
  if (planned.computeDtype === "float16") progress.lossScale ??= INITIAL_LOSS_SCALE;
  const stages = new Set(planned.plan.segments.map(({ rank }) => rank)).size;
  const { tokens: batchTokens } = await planned.cut.work(false);
  await replies?.placed({ pipeline, rows: cacheRows, stages, batchTokens }, progress.globalStep);
  if (progress.globalStep > 0) reporter.note(`resumed after step ${progress.globalStep}`);
  return { name: "stepping", planned, pipeline, progress };
}

async function step(run: Run, stepping: Stepping): Promise<Done | Left> {
  const { data, cluster, interrupts } = run;
  const { progress } = stepping;
  quietHeap();
  const started = performance.now();
  const before = progress.globalStep;
  cluster.health.ready = true;
  const work = await stepping.planned.cut.work(false);
  const traces = stepTraces(run, stepping, work);
  const options = trainerOptions(run, stepping, { work, traces });
  const finished = await cluster.untilSafePoint(() => trainSteps(options, progress));
  if (!finished) {
    if (interrupts.signal === null) return { name: "left", worker: cluster.leaving!.name };
    throw new Interrupted(
      interrupts.signal,
      `interrupted after step ${progress.globalStep}, which is saved`,
      "Continue with --resume-from-checkpoint.",
    );
  }
  const seconds = (performance.now() - started) / 1000;
  const steps = Math.max(1, progress.globalStep - before);
  await traces.finish({ members: stepping.planned.members, pipeline: stepping.pipeline });
  await finish(run, stepping, { seconds, samples: data.train.size * data.order.totalEpochs, steps });
  return { name: "done" };
}

/** What this attempt's ranks are asked of their steps. */
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

function trainerOptions(
  run: Run,
  { planned: { cut, members }, pipeline }: Stepping,
  { work, traces }: { readonly work: Work; readonly traces: StepTraces },
): TrainerOptions {
  const { config, setup, data, files, cluster, interrupts, log, reporter, replies } = run;
  const { replicas, size } = cut;
  return {
    config,
    pipeline,
    source: stepSource(data, setup.spec, size, replicas),
    evaluation:
      data.evaluation === null
        ? null
        : evaluationOf(data.evaluation, config.per_device_eval_batch_size, work.tokens, replicas),
    rate: files.rate,
    groups: files.groups.groups,
    flosPerToken: flosPerToken(setup),
    reporter,
    hooks: {
      interrupted: () => interrupts.signal !== null || cluster.leaving !== null,
      asked: () => replies?.asked === true,
      traced: (step, isLast) => traces.wants(step, isLast),
      stepped: (step, told) => traces.stepped(step, told, { members, pipeline }),
      answer: async (step) => replies?.answer(step, reporter),
      evaluated: async (step) => replies?.sample(step, reporter),
      save: async (current, stopping) => {
        const saved = await files.save(pipeline, current, stopping);
        reporter.saved(saved, current.globalStep);
        warnOfNodes(`checkpoint-${current.globalStep}`, saved.nodes, log);
      },
    },
  };
}

/** Saves the adapter and tells what the run took. */
async function finish(
  { files, log, reporter }: Run,
  { planned, pipeline, progress }: Stepping,
  took: { readonly seconds: number; readonly samples: number; readonly steps: number },
): Promise<void> {
  const reports = await pipeline.report();
  const summary = summarise(progress, reporter, took);
  const { nodes, best } = await files.finish(pipeline, progress);
  if (best !== null)
    reporter.note(`the adapter is that of ${best}, the best of all evaluations (${progress.bestMetric})`);
  warnOfNodes("the adapter", nodes, log);
  reporter.end({ ...summary, output_dir: files.outputDir, ...(nodes.length > 0 ? { nodes: nodesJson(nodes) } : {}) });
  const { plan, cut, speeds } = planned;
  const evaluationSeconds = progress.logHistory.flatMap(({ step, eval_runtime: seconds }) =>
    step > progress.globalStep - took.steps && typeof seconds === "number" ? [seconds] : [],
  );
  const { text, value } = predictedBesideMeasured(plan, { reports, evaluationSeconds }, await cut.work(false), speeds);
  reporter.predictions(text, value);
}

function warnOfNodes(save: string, nodes: readonly NodeSave[], log: Logger): void {
  for (const node of nodes) {
    if (node.error !== null) log.error(describeFailure(save, node));
  }
}

function showPlan({ plan, links, members }: PlannedMembers, { setup, reporter, warn }: Run): void {
  const layers = setup.spec.layers.map(({ name }) => name);
  const ranks = members.map(({ hello: { node, device, deviceName, memoryBytes } }, rank) => ({
    ...{ rank, node, device, name: deviceName, memory_bytes: memoryBytes },
  }));
  reporter.plan(formatPlan({ ...plan, warnings: [] }, layers, links), { ...planJson(plan, links), layers, ranks });
  for (const warning of plan.warnings) warn(warning);
}

/** The Trainer's count: six a parameter outside embeddings, the adapter's included; of a head that is trained whole both copies. */
function flosPerToken({ spec, lora }: ModelSetup): number {
  const embedding = spec.layers.find((layer) => layer.kind === "embedding")!.weight;
  const base = spec.tensors
    .filter(({ kind, name }) => kind === "parameter" && name !== embedding)
    .reduce((sum, { shape }) => sum + elementCount(shape), 0);
  const own = lora!.matrices.filter(({ name }) => name !== embedding && !name.endsWith(".bias"));
  return 6 * (base + matrixElements(own));
}
