import { elementCount } from "../common/dtype.ts";
import { PipeloraError, toPipeloraError } from "../common/errors.ts";
import type { Logger } from "../common/log.ts";
import type { Config } from "../config/options.ts";
import { checkpointFingerprint } from "../formats/fingerprint.ts";
import { formatPlan, planJson } from "../plan/format-plan.ts";
import type { Plan } from "../plan/plan.ts";
import type { WorkerConnection } from "../rpc/worker-connection.ts";
import { assemble, openCluster } from "./assemble.ts";
import type { Cluster } from "./cluster.ts";
import { Interrupts } from "./interrupts.ts";
import { INITIAL_LOSS_SCALE } from "./loss-scale.ts";
import { type ModelSetup, setUpModel } from "./model-setup.ts";
import { NodeFolders, type NodeSave, nodesJson, savedEverywhere } from "./node-folders.ts";
import { ensureWritable } from "./output-dir.ts";
import { assertFit, formatPreflight, inspectCluster, judge } from "./preflight.ts";
import type { Reporter } from "./reporter.ts";
import { describeFailure, RunFiles } from "./run-files.ts";
import { runFingerprint } from "./run-identity.ts";
import { predictedBesideMeasured } from "./run-report.ts";
import { summarise, trainSteps } from "./trainer.ts";
import { evaluationOf, readTrainingData, stepSource, type TrainingData } from "./training-data.ts";
import { trainingWorkload } from "./workload.ts";

/** Faults that a new set of workers may not meet again. */
const RESTARTABLE = new Set(["PL_WORKER_LOST", "PL_LINK_FAILED"]);

/**
 * The `train` command: checks everything that can be checked without a weight, gathers the workers, trains, saves. A lost
 * worker costs the steps since the last checkpoint, not the run (max_restarts).
 * Errors: PL_INTERRUPTED after a first Ctrl-C once the state is saved; whatever the parts raise.
 */
export async function train(config: Config, log: Logger, reporter: Reporter): Promise<void> {
  const outputDir = await ensureWritable(config.output_dir!);
  const setup = await setUpModel(config, { weights: true, lora: true });
  const warn = onceEach((warning) => log.warn(warning));
  for (const warning of setup.warnings) warn(warning);
  const data = await readTrainingData(config, setup.spec);
  describeData(data, log);
  const fingerprint = runFingerprint(config, await checkpointFingerprint(setup.checkpoint!), data.train);
  const files = await RunFiles.open(config, setup, outputDir, fingerprint, data.order.totalSteps);
  const cluster = await openCluster(config, log);
  const interrupts = new Interrupts(
    () => reporter.note("finishing the step, then saving; once more stops at once"),
    () => {
      cluster.kill();
      process.exit(130);
    },
  );
  try {
    if (config.preflight_only) {
      const members = await interrupts.during(cluster.form());
      await interrupts.during(preflight(members, { config, setup, files, warn, reporter }));
      return;
    }
    for (let attempt = 0; ; attempt++) {
      try {
        return await attemptRun({ config, setup, data, files, cluster, interrupts, log, warn, reporter });
      } catch (thrown) {
        const error = toPipeloraError(thrown);
        if (!RESTARTABLE.has(error.code) || attempt >= config.max_restarts || interrupts.requested) throw error;
        log.warn(
          `${error.message}; going on from the last checkpoint (restart ${attempt + 1} of ${config.max_restarts})`,
        );
        await cluster.dissolve(true);
      }
    }
  } finally {
    interrupts.dispose();
    await cluster.close();
  }
}

interface Run {
  readonly config: Config;
  readonly setup: ModelSetup;
  readonly data: TrainingData;
  readonly files: RunFiles;
  readonly cluster: Cluster;
  readonly interrupts: Interrupts;
  readonly log: Logger;
  /** Says a warning once, however often the run is restarted. */
  readonly warn: (warning: string) => void;
  readonly reporter: Reporter;
}

function onceEach(say: (text: string) => void): (text: string) => void {
  const said = new Set<string>();
  return (text) => {
    if (!said.has(text)) say(text);
    said.add(text);
  };
}

async function attemptRun(run: Run): Promise<void> {
  const { config, setup, data, files, cluster, interrupts, log, reporter } = run;
  const { spec } = setup;
  const workload = trainingWorkload(config, data);
  const { pipeline, plan, cut, computeDtype, prepared } = await interrupts.during(
    assemble(
      cluster,
      config,
      setup,
      workload,
      setup.adapter === null,
      (made) => showPlan(made, run),
      (members) => receive(members, run),
    ),
  );
  for (const [rank, { memory, seconds }] of prepared.entries()) {
    log.debug({ rank, memory }, `rank ${rank} is loaded after ${seconds.toFixed(1)} s`);
  }
  const { state, values } = await files.start();
  if (values !== null) await pipeline.importLora(values);
  if (computeDtype === "float16") state.lossScale ??= INITIAL_LOSS_SCALE;
  if (state.globalStep > 0) reporter.note(`resumed after step ${state.globalStep}`);

  const started = performance.now();
  const before = state.globalStep;
  const finished = await trainSteps(
    {
      config,
      pipeline,
      source: stepSource(data, spec, cut.size, cut.replicas),
      evaluation:
        data.evaluation === null
          ? null
          : evaluationOf(data.evaluation, config.per_device_eval_batch_size, cut.size, cut.replicas),
      rate: files.rate,
      flosPerToken: flosPerToken(setup),
      reporter,
      hooks: {
        interrupted: () => interrupts.requested,
        save: async (current, stopping) => {
          const saved = await files.save(pipeline, current, stopping);
          reporter.saved(saved, current.globalStep);
          warnOfNodes(`checkpoint-${current.globalStep}`, saved.nodes, log);
        },
      },
    },
    state,
  );
  if (!finished) {
    throw new PipeloraError("PL_INTERRUPTED", `interrupted after step ${state.globalStep}, which is saved`, {
      hint: "Continue with --resume-from-checkpoint.",
    });
  }
  const seconds = (performance.now() - started) / 1000;
  const steps = Math.max(1, state.globalStep - before);
  const summary = summarise(state, reporter, { seconds, samples: data.train.size * data.order.totalEpochs, steps });
  const { nodes } = await files.finish(pipeline, state);
  warnOfNodes("the adapter", nodes, log);
  reporter.end({ ...summary, output_dir: files.outputDir, ...(nodes.length > 0 ? { nodes: nodesJson(nodes) } : {}) });
  const { text, value } = predictedBesideMeasured(plan, pipeline, cut.work(false).microBatches);
  reporter.predictions(text, value);
}

/** Workers of other nodes are looked at before anything is loaded; those of this machine are only what it is itself. */
async function receive(members: readonly WorkerConnection[], run: Run): Promise<void> {
  if (run.config.listen !== null) await preflight(members, run);
  await openNodes(members, run);
}

/** Error: PL_PREFLIGHT_FAILED. */
async function preflight(
  members: readonly WorkerConnection[],
  { config, setup, files, warn, reporter }: Pick<Run, "config" | "setup" | "files" | "warn" | "reporter">,
): Promise<void> {
  const savesOnEachNode = savedEverywhere(config);
  const found = await inspectCluster(members, setup, files.outputDir, savesOnEachNode);
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

function describeData({ train, evaluation }: TrainingData, log: Logger): void {
  const { rows, totalTokens, labelTokens, truncated, unlabelled } = train.statistics;
  log.info(
    `${rows} rows, ${totalTokens} tokens, ${labelTokens} of them labels${evaluation === null ? "" : `; ${evaluation.size} rows held out`}`,
  );
  if (truncated > 0) log.warn(`${truncated} rows were cut at the maximal length`);
  if (unlabelled > 0) log.warn(`${unlabelled} rows have no label left and add nothing to the loss`);
}

function showPlan(plan: Plan, { setup, reporter, warn }: Run): void {
  const names = setup.spec.layers.map(({ name }) => name);
  reporter.plan(formatPlan({ ...plan, warnings: [] }, names), planJson(plan));
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
