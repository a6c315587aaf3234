import { join, resolve } from "node:path";
import { PipeloraError } from "../../../common/errors.ts";
import { readJsonFile } from "../../../common/files.ts";
import type { Config } from "../../../config/options.ts";
import { listCheckpoints } from "../../../formats/checkpoint-folders.ts";
import { savedEverywhere } from "../../cluster/node-folders.ts";
import type { ModelSetup } from "../../planning/model-setup.ts";
import { firstWhole, type ReadCheckpoint, readCheckpoint } from "./checkpoints.ts";
import { changedFreely, changedSettings, type DecisiveSettings, type FreeSettings } from "./run-identity.ts";
import { parseState } from "./trainer-state.ts";

/** The settings that decide what a run resumes from, and whether it may. */
export type ResumeSettings = Pick<
  Config,
  "resume_from_checkpoint" | "overwrite_output_dir" | "listen" | "save_on_each_node"
>;

/** Checks that a run may resume a checkpoint. Errors: PL_RESUME_INVALID, with the settings that differ. `warn` is told those that may differ. */
export async function checkOrigin(
  config: DecisiveSettings & FreeSettings,
  origin: ReadCheckpoint,
  fingerprint: string,
  warn: (text: string) => void,
): Promise<void> {
  const written = await writtenArguments(origin.path);
  try {
    parseState(origin.state, origin.path, fingerprint);
    for (const change of changedFreely(config, written))
      warn(`${change} in ${origin.path}: the run goes on with the new one`);
  } catch (error) {
    const changed = changedSettings(config, written);
    if (!(error instanceof PipeloraError) || changed.length === 0) throw error;
    throw new PipeloraError(
      "PL_RESUME_INVALID",
      `${origin.path} belongs to a run with other settings: ${changed.join("; ")}`,
      {
        hint: "Resume with that run's values (the learning rate, and steps of saving, logging and evaluation, may change), or train anew with --overwrite-output-dir.",
        cause: error,
      },
    );
  }
}

/** The contents of a checkpoint's training_args.json; empty if it is missing or malformed. */
async function writtenArguments(checkpoint: string): Promise<Record<string, unknown>> {
  const value = await readJsonFile(join(checkpoint, "training_args.json"), 1 << 20).catch(() => null);
  return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};
}

/**
 * The local date and time that chat templates write, without a zone. A resumed run uses that of its checkpoint, so that it goes on another day
 * as it began.
 */
export async function templateDate(
  config: Pick<Config, "template_date" | "resume_from_checkpoint" | "output_dir">,
): Promise<string> {
  if (config.template_date !== null) return config.template_date;
  const asked = config.resume_from_checkpoint;
  if (asked !== null && asked !== false) {
    const newest = (await listCheckpoints(config.output_dir!)).at(-1);
    const from = namedFolder(asked) ?? newest?.path;
    const kept = from === undefined ? undefined : (await writtenArguments(from))["template_date"];
    if (typeof kept === "string" && !Number.isNaN(Date.parse(kept))) return kept;
  }
  const now = new Date();
  return new Date(now.getTime() - now.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
}

export function stepOf({ path }: ReadCheckpoint): number {
  return Number(/checkpoint-(\d+)$/.exec(path)?.[1] ?? -1);
}

export function earlierRun(where: string, step: number): PipeloraError {
  return new PipeloraError("PL_OUTPUT_UNWRITABLE", `${where} holds checkpoint-${step} of an earlier run`, {
    hint: "Say --resume-from-checkpoint to continue it, --overwrite-output-dir to start anew, or name another folder.",
  });
}

/** A run of several adapters is to resume, but none has a checkpoint. `folder`: the first adapter's. `where`: where checkpoints were sought. */
export function noAdapterToResume(folder: string, where: string): PipeloraError {
  return new PipeloraError("PL_RESUME_INVALID", `no adapter of this run has a checkpoint, ${where}`, {
    hint: `Expected one such as ${join(folder, "checkpoint-100")}. Leave out --resume-from-checkpoint to begin.`,
  });
}

/** The checkpoint's folder that the user named; null if the newest was asked for, or none. */
export function namedFolder(asked: Config["resume_from_checkpoint"]): string | null {
  return typeof asked === "string" && asked !== "auto" ? asked : null;
}

/** The run's checkpoints up to the one that it resumes. Later ones belong to another continuation. */
export async function upTo(outputDir: string, path: string): Promise<string[]> {
  const all = (await listCheckpoints(outputDir)).map((found) => found.path);
  const place = all.indexOf(resolve(path));
  return place < 0 ? [] : all.slice(0, place + 1);
}

export async function resumePoint(
  config: ResumeSettings,
  setup: ModelSetup,
  outputDir: string,
  warn: (text: string) => void,
): Promise<ReadCheckpoint | null> {
  const asked = config.resume_from_checkpoint;
  const named = namedFolder(asked);
  if (named !== null) return readCheckpoint(named, setup.lora!);
  const present = await listCheckpoints(outputDir);
  if (asked === "auto" && present.length === 0) return null;
  if (asked === "auto" || asked === true) {
    const newestFirst = present.map(({ path }) => path).reverse();
    const damaged: string[] = [];
    const newest = await firstWhole(newestFirst, setup.lora!, (problem) => damaged.push(problem));
    for (const problem of damaged) warn(`passed over: ${problem}`);
    if (newest !== null && damaged.length > 0) warn(`resuming from the older ${newest.path}`);
    // Another node may have a checkpoint. That is known when the nodes have joined.
    if (newest !== null || savedEverywhere(config)) return newest;
    throw new PipeloraError(
      "PL_RESUME_INVALID",
      present.length === 0
        ? `${outputDir} holds no checkpoint`
        : `none of the ${present.length} checkpoints in ${outputDir} is whole`,
      { hint: "Name a checkpoint folder, or leave out --resume-from-checkpoint." },
    );
  }
  if (present.length > 0 && !config.overwrite_output_dir) {
    throw earlierRun(outputDir, present.at(-1)!.step);
  }
  return null;
}
