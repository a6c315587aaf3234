import { lookup } from "node:dns/promises";
import { isLoopback, joinAddress, splitAddress } from "../../common/address.ts";
import { elementCount } from "../../common/dtype.ts";
import { toPipeloraError } from "../../common/errors.ts";
import { comesBack, exitCodeOfSignal, Interrupted } from "../../common/exit-codes.ts";
import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import { lostText } from "../../data/dataset.ts";
import { checkpointFingerprint } from "../../formats/fingerprint.ts";
import { formatPlan, planJson } from "../../plan/format-plan.ts";
import type { PlannedLink } from "../../plan/link-kinds.ts";
import type { Plan } from "../../plan/plan.ts";
import type { WorkerConnection } from "../../rpc/worker-connection.ts";
import type { Cluster } from "../cluster/cluster.ts";
import { NodeFolders, type NodeSave, nodesJson, savedEverywhere } from "../cluster/node-folders.ts";
import { assertFit, formatPreflight, inspectCluster, judge } from "../cluster/preflight.ts";
import { describeModel, type ModelSetup } from "../planning/model-setup.ts";
import { evaluationOf, readTrainingData, stepSource, type TrainingData } from "../planning/training-data.ts";
import { type Cut, trainingWorkload } from "../planning/workload.ts";
import { assemble, openCluster } from "./assemble.ts";
import { Interrupts } from "./interrupts.ts";
import { INITIAL_LOSS_SCALE } from "./loss-scale.ts";
import { ensureWritable } from "./output-dir.ts";
import { quietHeap } from "./quiet-heap.ts";
import type { Reporter } from "./reporter.ts";
import { describeFailure, RunFiles, templateDate } from "./run-files.ts";
import { runFingerprint } from "./run-identity.ts";
import { predictedBesideMeasured } from "./run-report.ts";
import { summarise, type TrainerOptions, trainSteps } from "./trainer.ts";
import { withWholeSteps } from "./whole-steps.ts";

/** Faults that a new set of workers may not meet again. */
const RESTARTABLE = new Set(["PL_WORKER_LOST", "PL_LINK_FAILED"]);

/**
 * The `train` command: checks everything that can be checked without a weight, gathers the workers, trains, saves. A lost
 * worker costs the steps since the last checkpoint, not the run (max_restarts); one that is told to stop costs no step.
 * Errors: PL_INTERRUPTED after a first Ctrl-C or SIGTERM once the state is saved; whatever the parts raise.
 */
export async function train(config: Config, log: Logger, reporter: Reporter): Promise<void> {
  let cluster: Cluster | null = null;
  const interrupts = new Interrupts(
    () => reporter.note("finishing the step, then saving; once more stops at once"),
    (signal) => {
      cluster?.kill();
      process.exit(exitCodeOfSignal(signal));
    },
  );
  let back = false;
  try {
    const prepared = await interrupts.during(prepareRun(config, log));
    await warnOfLoopback(config, log);
    cluster = await openCluster(config, log);
    const run: Run = { ...prepared, cluster, interrupts, log, reporter, cut: null };
    if (config.preflight_only) await interrupts.during(cluster.form().then((members) => preflight(members, run)));
    else await attempts(run);
  } catch (thrown) {
    back = comesBack(toPipeloraError(thrown));
    throw thrown;
  } finally {
    interrupts.dispose();
    await cluster?.close(back);
  }
}

interface PreparedRun {
  /** As given, with what depends on the number of steps worked out. */
  readonly config: Config;
  readonly setup: ModelSetup;
  readonly data: TrainingData;
  readonly files: RunFiles;
  /** Says a warning once, however often the run is restarted. */
  readonly warn: (warning: string) => void;
}

interface Run extends PreparedRun {
  readonly cluster: Cluster;
  readonly interrupts: Interrupts;
  readonly log: Logger;
  readonly reporter: Reporter;
  /** How its steps are cut, once an attempt has a plan: the next ones keep to it. */
  cut: Cut | null;
}

/** Debian's /etc/hosts maps a machine's own name to 127.0.1.1, where no other node reaches it. */
async function warnOfLoopback({ listen, nnodes, nodes }: Config, log: Logger): Promise<void> {
  if (listen === null || isLoopback(listen) || (nnodes < 2 && nodes === null)) return;
  const { host } = splitAddress(listen);
  const found = await lookup(host).catch(() => null);
  if (found !== null && isLoopback(joinAddress(found.address, 0))) {
    log.warn(
      `--listen ${listen}: ${host} resolves to ${found.address}, which other nodes can't reach; name this machine's address`,
    );
  }
}

/** What can be checked and read before a worker is needed. */
async function prepareRun(asked: Config, log: Logger): Promise<PreparedRun> {
  const outputDir = await ensureWritable(asked.output_dir!);
  const given = { ...asked, template_date: await templateDate(asked) };
  const described = await describeModel(given, log, { weights: true, lora: true });
  const warn = onceEach((warning) => log.warn(warning));
  for (const warning of described.warnings) warn(warning);
  if (/8bit|paged/.test(given.optim)) warn(`optim ${given.optim}: AdamW in float32 is what runs`);
  const data = await readTrainingData(given, described, log);
  const config = withWholeSteps(given, data.order.totalSteps);
  describeData(data, log);
  // Weights that are fetched wait until the rows are known to be good.
  const setup = await described.withWeights();
  const fingerprint = runFingerprint(config, await checkpointFingerprint(setup.checkpoint!), data.train);
  const files = await RunFiles.open(config, setup, outputDir, fingerprint, data.order.totalSteps, warn);
  return { config, setup, data, files, warn };
}

/** The run, from its last safe point again whenever a worker was lost or has left. */
async function attempts(run: Run): Promise<void> {
  const { config, cluster, interrupts, log } = run;
  for (let restarts = 0; ; ) {
    try {
      const leaver = await attemptRun(run);
      if (leaver === null) return;
      log.warn(`${leaver} leaves, all steps are saved; waiting for its return`);
    } catch (thrown) {
      const error = toPipeloraError(thrown);
      if (!RESTARTABLE.has(error.code) || restarts >= config.max_restarts || interrupts.signal !== null) throw error;
      restarts++;
      log.warn(`${error.message}; going on from the last checkpoint (restart ${restarts} of ${config.max_restarts})`);
    }
    await cluster.dissolve(true);
  }
}

function onceEach(say: (text: string) => void): (text: string) => void {
  const said = new Set<string>();
  return (text) => {
    if (!said.has(text)) say(text);
    said.add(text);
  };
}

/** Resolves with null at the run's end, or with the name of a worker that leaves. */
async function attemptRun(run: Run): Promise<string | null> {
  const { config, setup, data, files, cluster, interrupts, log, reporter } = run;
  const { spec } = setup;
  const workload = { ...trainingWorkload(config, data), previous: run.cut };
  const { pipeline, plan, cut, computeDtype, speeds, prepared } = await interrupts.during(
    assemble(
      cluster,
      config,
      setup,
      workload,
      setup.adapter === null,
      (made, links) => showPlan(made, links, run),
      (members) => receive(members, run),
    ),
  );
  run.cut = cut;
  for (const [rank, { memory, seconds }] of prepared.entries()) {
    log.debug({ rank, memory }, `rank ${rank} is loaded after ${seconds.toFixed(1)} s`);
  }
  const { state, values } = await files.start();
  if (values !== null) await pipeline.importLora(values);
  if (computeDtype === "float16") state.lossScale ??= INITIAL_LOSS_SCALE;
  if (state.globalStep > 0) reporter.note(`resumed after step ${state.globalStep}`);

  quietHeap();
  const started = performance.now();
  const before = state.globalStep;
  cluster.health.ready = true;
  const options: TrainerOptions = {
    config,
    pipeline,
    source: stepSource(data, spec, cut.size, cut.replicas),
    evaluation:
      data.evaluation === null
        ? null
        : evaluationOf(data.evaluation, config.per_device_eval_batch_size, cut.work(false).tokens, cut.replicas),
    rate: files.rate,
    flosPerToken: flosPerToken(setup),
    reporter,
    hooks: {
      interrupted: () => interrupts.signal !== null || cluster.leaving !== null,
      save: async (current, stopping) => {
        const saved = await files.save(pipeline, current, stopping);
        reporter.saved(saved, current.globalStep);
        warnOfNodes(`checkpoint-${current.globalStep}`, saved.nodes, log);
      },
    },
  };
  const finished = await cluster.untilSafePoint(() => trainSteps(options, state));
  if (!finished) {
    if (interrupts.signal === null) return cluster.leaving!.name;
    throw new Interrupted(
      interrupts.signal,
      `interrupted after step ${state.globalStep}, which is saved`,
      "Continue with --resume-from-checkpoint.",
    );
  }
  const seconds = (performance.now() - started) / 1000;
  const reports = await pipeline.report();
  const steps = Math.max(1, state.globalStep - before);
  const summary = summarise(state, reporter, { seconds, samples: data.train.size * data.order.totalEpochs, steps });
  const { nodes } = await files.finish(pipeline, state);
  warnOfNodes("the adapter", nodes, log);
  reporter.end({ ...summary, output_dir: files.outputDir, ...(nodes.length > 0 ? { nodes: nodesJson(nodes) } : {}) });
  const { text, value } = predictedBesideMeasured(plan, reports, cut.work(false), speeds);
  reporter.predictions(text, value);
  return null;
}

/** Workers of other nodes are looked at before anything is loaded; those of this machine are only what it is itself. */
async function receive(members: readonly WorkerConnection[], run: Run): Promise<void> {
  if (run.config.listen !== null) await preflight(members, run);
  await openNodes(members, run);
  await run.files.setAsideOthers();
}

/** Errors: PL_PREFLIGHT_FAILED; PL_WORKER_LOST as soon as a worker is gone, which a restart may mend. */
async function preflight(members: readonly WorkerConnection[], run: Run): Promise<void> {
  const { config, setup, files, cluster, warn, reporter } = run;
  const savesOnEachNode = savedEverywhere(config);
  // A link to a worker that is gone takes until its timeout to fail; the loss is known at once.
  const found = await Promise.race([
    inspectCluster(members, setup, config, files.outputDir, savesOnEachNode),
    cluster.failure,
  ]);
  const verdict = judge(found, { checkpointBytes: files.checkpointBytes, diskMustDo: config.save_failure === "fail" });
  reporter.preflight(formatPreflight(found), { ...found, ...verdict });
  for (const warning of verdict.warnings) warn(warning);
  assertFit(verdict);
}

/** save_on_each_node: where the nodes save, and from which of them a run resumes. */
async function openNodes(members: readonly WorkerConnection[], run: Run): Promise<void> {
  const { config, files, log, reporter } = run;
  if (!savedEverywhere(config)) return;
  const folders = await NodeFolders.open(members, files.outputDir);
  for (const { node, dir, sharedWith, error } of folders.nodes) {
    const whose = sharedWith === null ? "the coordinator" : sharedWith;
    if (error !== null && config.save_failure === "fail") throw error;
    if (error !== null) log.error(`node "${node}" can't save: ${error.message}`);
    else log.info(`node "${node}" saves to ${dir}${whose === undefined ? "" : `, the same folder as ${whose}`}`);
  }
  const note = await files.attach(folders);
  if (note !== null) reporter.note(note);
}

function warnOfNodes(save: string, nodes: readonly NodeSave[], log: Logger): void {
  for (const node of nodes) {
    if (node.error !== null) log.error(describeFailure(save, node));
  }
}

function describeData({ train, evaluation, parts }: TrainingData, log: Logger): void {
  const { rows, totalTokens, labelTokens, truncated, unlabelled } = train.statistics;
  log.info(
    `${rows} rows, ${totalTokens} tokens, ${labelTokens} of them labels${evaluation === null ? "" : `; ${evaluation.size} rows held out`}`,
  );
  if (parts.length > 1) {
    const percent = (part: number, whole: number) => `${((100 * part) / Math.max(1, whole)).toFixed(1)} %`;
    for (const { label, rows: taken, labelTokens: labels, own, heldOut } of parts) {
      const again = taken > own ? `, each ${(taken / own).toFixed(2)} times` : "";
      const held = heldOut > 0 ? `, ${heldOut} held out` : "";
      log.info(
        `${label}: ${own} rows${again}${held}: ${percent(taken, rows)} of an epoch's rows, ${percent(labels, labelTokens)} of its labels`,
      );
    }
  }
  if (truncated > 0) log.warn(`${truncated} rows were cut at the maximal length`);
  const lost = lostText(train.statistics);
  if (lost !== null) log.warn(lost);
  if (unlabelled > 0) log.warn(`${unlabelled} rows have no label left and add nothing to the loss`);
}

function showPlan(plan: Plan, links: readonly PlannedLink[], { setup, reporter, warn }: Run): void {
  const names = setup.spec.layers.map(({ name }) => name);
  reporter.plan(formatPlan({ ...plan, warnings: [] }, names, links), planJson(plan, links));
  for (const warning of plan.warnings) warn(warning);
}

/** The Trainer's count: six a parameter outside the embedding, the adapter's included. */
function flosPerToken({ spec, lora }: ModelSetup): number {
  const embedding = spec.layers.find((layer) => layer.kind === "embedding")!.weight;
  const base = spec.tensors
    .filter(({ kind, name }) => kind === "parameter" && name !== embedding)
    .reduce((sum, { shape }) => sum + elementCount(shape), 0);
  return 6 * (base + lora!.trainable);
}
