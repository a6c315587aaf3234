import { lookup } from "node:dns/promises";
import { isLoopback, joinAddress, splitAddress } from "../../common/address.ts";
import { withDeadline } from "../../common/deadline.ts";
import { toPipeloraError } from "../../common/errors.ts";
import { comesBack, exitCodeOfSignal } from "../../common/exit-codes.ts";
import type { Logger } from "../../common/log.ts";
import { ensureWritable } from "../../common/output-dir.ts";
import { changedKeys } from "../../config/load.ts";
import { type Config, withoutSecrets } from "../../config/options.ts";
import { lostText } from "../../data/dataset.ts";
import { checkpointFingerprint } from "../../formats/fingerprint.ts";
import type { Cluster } from "../cluster/cluster.ts";
import { Interrupts } from "../cluster/interrupts.ts";
import { openCluster } from "../cluster/open-cluster.ts";
import { describeModel } from "../planning/model-setup.ts";
import { readTrainingData, type TrainingData } from "../planning/training-data.ts";
import type { Cut } from "../planning/workload.ts";
import { Attempt } from "./attempt.ts";
import { type HttpShows, LiveReplies } from "./live-replies.ts";
import { preflight } from "./receive.ts";
import type { Reporter } from "./reporter.ts";
import { restartAfter } from "./restart.ts";
import { templateDate } from "./resume-point.ts";
import type { PreparedRun, Run } from "./run.ts";
import { RunFiles } from "./run-files.ts";
import { runFingerprint } from "./run-identity.ts";
import { TraceFile } from "./tracing/trace-file.ts";
import { trainingStages } from "./training-stages.ts";
import { withWholeSteps } from "./whole-steps.ts";

/** A lost attempt's files are written or given up by then. */
const SETTLE_MS = 60_000;

/**
 * The `train` command: checks everything that can be checked without a weight, gathers the workers, trains, saves. A lost
 * worker costs the steps since the last checkpoint, not the run (max_restarts); one that is told to stop costs no step. `http`: what is
 * told with --http beside replies.
 * Errors: PL_INTERRUPTED after a first Ctrl-C or SIGTERM once the state is saved; whatever the parts raise.
 */
export async function train(config: Config, log: Logger, reporter: Reporter, http: HttpShows): Promise<void> {
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
    const prepared = await interrupts.during(prepareRun(config, log, http));
    replies = prepared.replies;
    if (!config.preflight_only) {
      reporter.began({ settings: withoutSecrets(prepared.config), changed: changedKeys(prepared.config) });
    }
    await replies?.listen();
    await warnOfLoopback(config, log);
    cluster = await openCluster(config, log);
    const run: Run = { ...prepared, cluster, interrupts, log, reporter };
    if (config.preflight_only) await interrupts.during(cluster.form().then((members) => preflight(members, run)));
    else await attempts(run);
  } catch (thrown) {
    back = comesBack(toPipeloraError(thrown));
    throw thrown;
  } finally {
    interrupts.dispose();
    await replies?.close();
    await cluster?.close(back);
  }
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

/** What can be checked and read before a worker is needed. */
async function prepareRun(asked: Config, log: Logger, http: HttpShows): Promise<PreparedRun> {
  const outputDir = await ensureWritable(asked.output_dir!);
  const given = { ...asked, template_date: await templateDate(asked) };
  const described = await describeModel(given, log, { weights: true, lora: true });
  const warn = onceEach((warning) => log.warn(warning));
  for (const warning of described.warnings) warn(warning);
  if (/8bit|paged/.test(given.optim)) warn(`optim ${given.optim}: AdamW in float32 is what runs`);
  if (given.loraplus_lr_ratio !== null && given.weight_decay > 0) {
    warn(`weight_decay ${given.weight_decay} does not act with LoRA+, as in peft: loraplus_weight_decay does`);
  }
  const data = await readTrainingData(given, described, log);
  const config = withWholeSteps(given, data.order.totalSteps);
  describeData(data, log);
  // Weights that are fetched wait until the rows are known to be good.
  const setup = await described.withWeights();
  const fingerprint = await runFingerprint(config, await checkpointFingerprint(setup.checkpoint!), data.train);
  const identity = { outputDir, fingerprint, maxSteps: data.order.totalSteps, args: withoutSecrets(config) };
  const files = await RunFiles.open(config, setup, identity, warn);
  const trace = await TraceFile.open(config, warn);
  const replies = await LiveReplies.open(config, setup, { log, http });
  const watched = () => http.live?.isLookedAt === true;
  return { config, setup, data, files, trace, watched, replies, warn };
}

/** The run, from its last safe point again whenever a worker was lost or has left. */
async function attempts(run: Run): Promise<void> {
  const { config, cluster, interrupts, log } = run;
  let cut: Cut | null = null;
  for (let restarts = 0; ; ) {
    const disturbed = Promise.race([cluster.failure, interrupts.first]);
    const attempt = new Attempt(trainingStages(run, cut), disturbed, cut);
    const ended = await attempt.run();
    if (ended.name === "done") return;
    if (ended.name === "failed") log.debug(`the attempt failed while it was ${ended.during}`);
    const stopping = interrupts.signal !== null;
    const { reason, counts } = restartAfter(ended, { left: config.max_restarts - restarts, stopping });
    if (counts) restarts++;
    log.warn(counts ? `${reason} (restart ${restarts} of ${config.max_restarts})` : reason);
    await cluster.dissolve(true);
    await withDeadline(attempt.settled(), SETTLE_MS, { name: "what the ended attempt had under way" });
    cut = attempt.cut;
  }
}

function onceEach(say: (text: string) => void): (text: string) => void {
  const said = new Set<string>();
  return (text) => {
    if (!said.has(text)) say(text);
    said.add(text);
  };
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
