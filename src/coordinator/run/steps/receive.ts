import { PipeloraError } from "../../../common/errors.ts";
import type { WorkerConnection } from "../../../rpc/worker-connection.ts";
import { hubModelMessage } from "../../assembly/prepare-requests.ts";
import { NodeFolders, savedEverywhere } from "../../cluster/node-folders.ts";
import { assertFit, formatPreflight, inspectCluster, judge } from "../../cluster/preflight.ts";
import type { AdapterRun } from "../adapter-run.ts";
import { noAdapterToResume } from "../checkpoints/resume-point.ts";
import type { Run } from "../run.ts";

/** Inspects workers of other nodes before anything is loaded. Local workers need no inspection. */
export async function receive(members: readonly WorkerConnection[], run: Run): Promise<void> {
  if (run.config.listen !== null && run.changes?.known(members) !== true) await look(members, run);
  await openNodes(members, run);
  for (const { files } of run.adapters) await files.setAsideOthers();
}

/** Runs the preflight. In an elastic run, a joining worker that is unfit is sent away and the others go on. Errors: those of preflight. */
async function look(members: readonly WorkerConnection[], run: Run): Promise<void> {
  const { changes, cluster } = run;
  try {
    await preflight(members, run);
  } catch (error) {
    const strangers = members.filter((member) => changes?.known([member]) === false);
    const unfit = error instanceof PipeloraError && error.code === "PL_PREFLIGHT_FAILED";
    if (!unfit || changes?.fitted !== true || strangers.length === members.length) throw error;
    for (const stranger of strangers) cluster.sendAway(stranger, error);
    return cluster.failure;
  }
  changes?.inspected(members);
}

/** Inspects workers and links. Errors: PL_PREFLIGHT_FAILED; PL_WORKER_LOST as soon as a worker is gone, after which a restart may help. */
export async function preflight(members: readonly WorkerConnection[], run: Run): Promise<void> {
  const { config, base, adapters, cluster, warn, reporter } = run;
  // A link to a lost worker fails only after its timeout, but the loss is known at once.
  const found = await Promise.race([
    inspectCluster(
      members,
      {
        modelDir: base.dir,
        hubModel: hubModelMessage(base),
        checkpoint: base.checkpoint!,
        outputDir: config.output_dir!,
        savesOnEachNode: savedEverywhere(config),
      },
      config,
    ),
    cluster.failure,
  ]);
  const checkpointBytes = adapters.reduce((sum, { files }) => sum + files.checkpointBytes, 0);
  const verdict = judge(found, { checkpointBytes, diskMustDo: config.save_failure === "fail" });
  reporter.preflight(formatPreflight(found), { ...found, ...verdict });
  for (const warning of verdict.warnings) warn(warning);
  assertFit(verdict);
}

/** With save_on_each_node: opens the nodes' folders, and finds the checkpoint to resume on any of them. */
async function openNodes(members: readonly WorkerConnection[], run: Run): Promise<void> {
  const { config, adapters } = run;
  if (!savedEverywhere(config)) return;
  for (const adapter of adapters) if (adapter.live) await openNodesOf(members, adapter, run);
  if (config.resume_from_checkpoint === true && adapters.every(({ files }) => files.begins)) {
    throw noAdapterToResume(adapters[0]!.files.outputDir, "here or on any node");
  }
}

async function openNodesOf(
  members: readonly WorkerConnection[],
  { name, files, reporter }: AdapterRun,
  { config, log }: Pick<Run, "config" | "log">,
): Promise<void> {
  const folders = await NodeFolders.open(members, files.outputDir, name);
  for (const { node, dir, sharedWith, error } of folders.nodes) {
    const whose = sharedWith === null ? "the coordinator" : sharedWith;
    if (error !== null && config.save_failure === "fail") throw error;
    if (error !== null) log.error(`node "${node}" can't save: ${error.message}`);
    else log.info(`node "${node}" saves to ${dir}${whose === undefined ? "" : `, the same folder as ${whose}`}`);
  }
  const note = await files.attach(folders);
  if (note !== null) reporter.note(note);
}
