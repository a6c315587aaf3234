import { lookup } from "node:dns/promises";
import { isLoopback, joinAddress, splitAddress } from "../../common/address.ts";
import { withDeadline } from "../../common/deadline.ts";
import { type ErrorCode, PipeloraError, toPipeloraError } from "../../common/errors.ts";
import { comesBack, exitCodeOfSignal } from "../../common/exit-codes.ts";
import type { Logger } from "../../common/log.ts";
import { ensureWritable } from "../../common/output-dir.ts";
import { changedKeys } from "../../config/load.ts";
import { type Config, withoutSecrets } from "../../config/options.ts";
import { lostText } from "../../data/dataset.ts";
import { listCheckpoints } from "../../formats/checkpoint-folders.ts";
import { checkpointFingerprint } from "../../formats/fingerprint.ts";
import { STRATEGIES } from "../../plan/request.ts";
import type { Cluster } from "../cluster/cluster.ts";
import { Interrupts } from "../cluster/interrupts.ts";
import { savedEverywhere } from "../cluster/node-folders.ts";
import { openCluster } from "../cluster/open-cluster.ts";
import { RESTARTABLE } from "../cluster/restartable.ts";
import { describeModels } from "../planning/model-setup.ts";
import { adapterLabel, named } from "../planning/named-adapters.ts";
import { deviceMap } from "../planning/planning.ts";
import { readAdaptersData, type TrainingData } from "../planning/training-data.ts";
import { AdapterRun } from "./adapter-run.ts";
import { Attempt } from "./attempt.ts";
import { earlierRun, noAdapterToResume, templateDate } from "./checkpoints/resume-point.ts";
import { RunFiles } from "./checkpoints/run-files.ts";
import { runFingerprint } from "./checkpoints/run-identity.ts";
import { Changes } from "./elastic/changes.ts";
import { beginsWithEva, makeEvaAdapter, resumedEva } from "./eva/eva-adapter.ts";
import { type HttpShows, LiveReplies } from "./replies/live-replies.ts";
import type { Reporter } from "./reporter.ts";
import { restartAfter } from "./restart.ts";
import type { PreparedRun, Run } from "./run.ts";
import { preflight } from "./steps/receive.ts";
import { withWholeSteps } from "./steps/whole-steps.ts";
import { TraceFile } from "./tracing/trace-file.ts";
import { interruptedAfter, saveHeld, trainingStages } from "./training-stages.ts";

/** After this long, the file writes of a lost attempt have ended or are given up. */
const SETTLE_MS = 60_000;

/** An adapter to train: its complete configuration, and its reporter. */
export interface AdapterToTrain {
  /** Null: it is the only one. */
  readonly name: string | null;
  readonly config: Config;
  readonly reporter: Reporter;
}

/**
 * The `train` command: checks everything that can be checked without a weight, waits for the workers, trains and saves. A lost worker costs the
 * steps since the last checkpoint, not the run (max_restarts). A worker that is told to stop costs no step. `reporter`: for events of the run as
 * a whole. `http`: what --http serves besides replies.
 * Errors: PL_INTERRUPTED after a first Ctrl-C or SIGTERM, when the state is saved; PL_ADAPTERS_FAILED if some of several adapters failed alone;
 * those of its parts.
 */
export async function train(
  config: Config,
  wanted: readonly AdapterToTrain[],
  { log, reporter, http }: { readonly log: Logger; readonly reporter: Reporter; readonly http: HttpShows },
): Promise<void> {
  let cluster: Cluster | null = null;
  let replies: LiveReplies | null = null;
  const interrupts = new Interrupts(
    () => reporter.note("finishing the step, then saving; once more stops at once"),
    (signal) => {
      cluster?.kill();
      process.exit(exitCodeOfSignal(signal));
    },
  );
  let back = false;
  try {
    // EVA's workers decide the adapter's ranks, which the plan of the run needs.
    const made = await interrupts.during(
      evaFirst(config, log, (opened) => {
        cluster = opened;
      }),
    );
    const adapted = <C extends Config>(one: C): C => (made === null ? one : { ...one, adapter: made });
    const prepared = await interrupts.during(
      prepareRun(
        adapted(config),
        wanted.map((one) => ({ ...one, config: adapted(one.config) })),
        log,
        http,
      ),
    );
    replies = prepared.replies;
    if (!config.preflight_only) {
      for (const { config: own, reporter: told } of prepared.adapters) {
        told.began({ settings: withoutSecrets(own), changed: changedKeys(own) });
      }
    }
    await replies?.listen();
    await warnOfLoopback(config, log);
    cluster ??= await openCluster(config, log);
    const changes = config.elastic ? new Changes() : null;
    const run: Run = { ...prepared, cluster, interrupts, log, reporter, changes };
    if (config.preflight_only) await interrupts.during(cluster.form().then((members) => preflight(members, run)));
    else await attempts(run);
    const failure = failureOf(run.adapters);
    if (failure !== null) throw failure;
  } catch (thrown) {
    back = comesBack(toPipeloraError(thrown));
    throw thrown;
  } finally {
    interrupts.dispose();
    await replies?.close();
    await cluster?.close(back);
  }
}

/** Runs EVA and returns the folder of its adapter; null if the run does not ask for EVA. */
async function evaFirst(config: Config, log: Logger, opened: (cluster: Cluster) => void): Promise<string | null> {
  if (!beginsWithEva(config)) return null;
  const before = await resumedEva(config);
  if (before !== null || config.preflight_only) return before;
  const outputDir = await ensureWritable(config.output_dir!);
  const [present] = (await listCheckpoints(outputDir)).slice(-1);
  if (present !== undefined && !config.overwrite_output_dir) throw earlierRun(outputDir, present.step);
  const cluster = await openCluster(config, log);
  opened(cluster);
  return makeEvaAdapter(config, cluster, log);
}

/** Debian's /etc/hosts maps a machine's own name to 127.0.1.1, where no other node reaches it. */
async function warnOfLoopback(
  { listen, nnodes, nodes }: Pick<Config, "listen" | "nnodes" | "nodes">,
  log: Logger,
): Promise<void> {
  if (listen === null || isLoopback(listen) || (nnodes < 2 && nodes === null)) return;
  const { host } = splitAddress(listen);
  const found = await lookup(host).catch(() => null);
  if (found !== null && isLoopback(joinAddress(found.address, 0))) {
    log.warn(
      `--listen ${listen}: ${host} resolves to ${found.address}, which other nodes can't reach; name this machine's address`,
    );
  }
}

/** Checks and reads everything that needs no worker. */
async function prepareRun(
  config: Config,
  wanted: readonly AdapterToTrain[],
  log: Logger,
  http: HttpShows,
): Promise<PreparedRun> {
  const warn = onceEach((warning) => log.warn(warning));
  if (config.elastic && typeof (await deviceMap(config.device_map)) !== "string") {
    throw new PipeloraError("PL_CONFIG_INVALID", "--elastic plans for whoever is there: --device-map names places", {
      hint: `Give one of ${STRATEGIES.join(", ")} with it.`,
    });
  }
  const asked = await resumable(wanted);
  const labelled = [];
  for (const { name, config: own, reporter } of asked) {
    const outputDir = await ensureWritable(own.output_dir!);
    labelled.push({
      name,
      label: adapterLabel(name),
      reporter,
      outputDir,
      config: { ...own, template_date: await templateDate(own) },
    });
    if (/8bit|paged/.test(own.optim)) warn(`optim ${own.optim}: AdamW in float32 is what runs`);
    if (own.loraplus_lr_ratio !== null && own.weight_decay > 0) {
      warn(`weight_decay ${own.weight_decay} does not act with LoRA+, as in peft: loraplus_weight_decay does`);
    }
  }
  const described = await describeModels(labelled, log, { weights: true, lora: true });
  for (const warning of described.flatMap(({ warnings }) => warnings)) warn(warning);
  const data = await readAdaptersData(labelled, described[0]!, log);
  const adapters: AdapterRun[] = [];
  for (const [index, { name, label, reporter, outputDir, config: given }] of labelled.entries()) {
    try {
      const own = data[index]!;
      const whole = withWholeSteps(given, own.order.totalSteps);
      describeData(own, label, log);
      // Weights are fetched only after the rows are known to be good.
      const setup = await described[index]!.withWeights();
      const fingerprint = await runFingerprint(whole, await checkpointFingerprint(setup.checkpoint!), own.train);
      const identity = {
        outputDir,
        fingerprint,
        maxSteps: own.order.totalSteps,
        epochs: own.order.totalEpochs,
        args: withoutSecrets(whole),
      };
      const files = await RunFiles.open(whole, setup, identity, (text) => warn(`${label}${text}`));
      adapters.push(new AdapterRun(name, { config: whole, setup, data: own, files, reporter }));
    } catch (error) {
      throw named(label, error);
    }
  }
  const [first] = adapters;
  const trace = await TraceFile.open(config, warn);
  const replies = await LiveReplies.open(config, adapters, { log, http });
  const watched = () => http.live.some(({ isLookedAt }) => isLookedAt);
  return { config, adapters, base: first!.setup, trace, watched, replies, warn };
}

/**
 * Decides which of several adapters resume. If a run ended before all had saved, those with a checkpoint resume and the others begin. Errors:
 * PL_RESUME_INVALID if none has a checkpoint.
 */
async function resumable(wanted: readonly AdapterToTrain[]): Promise<readonly AdapterToTrain[]> {
  const [first] = wanted;
  if (first!.name === null || first!.config.resume_from_checkpoint !== true) return wanted;
  for (const { config } of wanted) {
    // Nodes may have checkpoints. That is known when they have joined.
    if (!savedEverywhere(config) && (await listCheckpoints(config.output_dir!)).length === 0) continue;
    return wanted.map((one) => ({ ...one, config: { ...one.config, resume_from_checkpoint: "auto" } }));
  }
  throw noAdapterToResume(first!.config.output_dir!, "in its own folder");
}

/** The error of a run in which adapters failed alone; null if none did. */
export function failureOf(adapters: readonly Pick<AdapterRun, "name" | "error">[]): PipeloraError | null {
  const failed = adapters.filter(({ error }) => error !== null);
  const [first] = failed;
  if (first === undefined) return null;
  if (first.name === null) return first.error;
  const each = failed.map(({ name, error }) => `  ${name}: ${error!.code}: ${error!.message}`);
  return new PipeloraError(
    "PL_ADAPTERS_FAILED",
    `${failed.length} of ${adapters.length} adapters failed${failed.length < adapters.length ? ", the others are done" : ""}:\n${each.join("\n")}`,
    { hint: "Each goes on from its own last checkpoint with --resume-from-checkpoint, once its cause is gone." },
  );
}

/** Makes attempts until the run ends. A new one starts from the last save when a worker is lost or leaves, or joins an elastic run. */
async function attempts(run: Run): Promise<void> {
  const { config, cluster, interrupts, log, changes } = run;
  for (let restarts = 0; ; ) {
    const disturbed = Promise.race([cluster.failure, interrupts.first]);
    const attempt = new Attempt(trainingStages(run), disturbed);
    const ended = await attempt.run();
    if (ended.name === "done") return;
    if (ended.name === "failed") log.debug(`the attempt failed while it was ${ended.during}`);
    // If a worker is lost after the last adapter was written, the run is done.
    const over = !run.adapters.some(({ live }) => live);
    if (over && (ended.name === "regroup" || RESTARTABLE.has(ended.error.code))) return;
    const elastic = changes && { free: changes.gotOn || cluster.leftByOrder, fitted: changes.fitted };
    const standing = { left: config.max_restarts - restarts, stopping: interrupts.signal !== null, elastic };
    const { reason, counts } = await savedOnThrow(run, ended, () => restartAfter(ended, standing));
    if (counts) restarts++;
    log.warn(counts ? `${reason} (restart ${restarts} of ${config.max_restarts})` : reason);
    if (ended.name === "failed" && ended.error.code === "PL_PLACEMENT_INFEASIBLE")
      changes?.tooFew(cluster.members.length);
    changes?.begin();
    await cluster.dissolve();
    await withDeadline(attempt.settled(), SETTLE_MS, { name: "what the ended attempt had under way" });
  }
}

/** Errors that end an elastic run through no fault of its own. It may hold steps that no checkpoint has, and saves them first. */
const SAVED_BEFORE: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  ...RESTARTABLE,
  "PL_INTERRUPTED",
  "PL_WORKER_MISSING",
  "PL_PREFLIGHT_FAILED",
  "PL_PLACEMENT_INFEASIBLE",
]);

async function savedOnThrow<T>(run: Run, ended: Attempt["state"], decide: () => T): Promise<T> {
  try {
    return decide();
  } catch (error) {
    if (ended.name !== "failed" || !SAVED_BEFORE.has(ended.error.code)) throw error;
    const saved = await saveHeld(run);
    const { signal } = run.interrupts;
    throw ended.error.code === "PL_INTERRUPTED" && signal !== null && saved.length > 0
      ? interruptedAfter(signal, saved)
      : error;
  }
}

function onceEach(say: (text: string) => void): (text: string) => void {
  const said = new Set<string>();
  return (text) => {
    if (!said.has(text)) say(text);
    said.add(text);
  };
}

function describeData({ train, evaluation, parts }: TrainingData, label: string, log: Logger): void {
  const { rows, totalTokens, labelTokens, truncated, unlabelled } = train.statistics;
  log.info(
    `${label}${rows} rows, ${totalTokens} tokens, ${labelTokens} of them labels${evaluation === null ? "" : `; ${evaluation.size} rows held out`}`,
  );
  if (parts.length > 1) {
    const percent = (part: number, whole: number) => `${((100 * part) / Math.max(1, whole)).toFixed(1)} %`;
    for (const { label: set, rows: taken, labelTokens: labels, own, heldOut } of parts) {
      const again = taken > own ? `, each ${(taken / own).toFixed(2)} times` : "";
      const held = heldOut > 0 ? `, ${heldOut} held out` : "";
      log.info(
        `${set}: ${own} rows${again}${held}: ${percent(taken, rows)} of an epoch's rows, ${percent(labels, labelTokens)} of its labels`,
      );
    }
  }
  if (truncated > 0) log.warn(`${label}${truncated} rows were truncated to the maximal length`);
  const lost = lostText(train.statistics);
  if (lost !== null) log.warn(`${label}${lost}`);
  if (unlabelled > 0) log.warn(`${label}${unlabelled} rows have no label left and add nothing to the loss`);
}
