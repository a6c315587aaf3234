import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { PipeloraError } from "../../common/errors.ts";
import type { Logger } from "../../common/log.ts";
import { HELD_AS } from "../../config/held-as.ts";
import type { Config } from "../../config/options.ts";
import { checkpointFingerprint } from "../../formats/fingerprint.ts";
import { type Reply, reply } from "../../generation/reply.ts";
import type { Scheduler } from "../../generation/scheduler.ts";
import { type ModelSetup, setUpModel } from "../planning/model-setup.ts";
import { AnswerFile } from "./answer-file.ts";
import { stopIdsOf } from "./conversation.ts";
import { type PromptFile, type PromptRow, promptRows } from "./prompt-rows.ts";
import { type Language, languageOf, type SampleSettings } from "./sample.ts";
import { withScheduler } from "./scheduled-model.ts";
import { tokenChoice } from "./token-choice.ts";

/** Settings that decide what an answer is, beside the model. */
const DECISIVE = [
  ...HELD_AS,
  "template",
  "system",
  "template_date",
  "raw",
  "max_new_tokens",
  "do_sample",
  "temperature",
  "top_p",
  "top_k",
  "min_p",
  "repetition_penalty",
  "stop",
  "stop_ids",
  "seed",
] as const satisfies readonly (keyof Config)[];

/** Keys that an answer adds to its prompt's row. */
const OWN = ["index", "output_ids", "text", "finish_reason"];
const PROGRESS_MS = 10_000;

type Settings = Config & SampleSettings;

/**
 * Answers every prompt of --input into --output, up to --max-num-seqs at a time. Run again, it keeps the answers that are there. All prompts
 * are checked before a weight is read. Errors: those of the prompts; PL_ENGINE_FAILED at the end if some got no answer.
 */
export async function answerPrompts(config: Settings, log: Logger): Promise<void> {
  const setup = await setUpModel(config, log, { weights: true, lora: false });
  for (const warning of setup.warnings) log.warn(warning);
  const file: PromptFile = { path: config.input!, plain: false };
  const language = await languageFor(file, setup, config, log);
  const { count, longest } = await measure(file, language, setup);
  const answers = await AnswerFile.open(config.output!, await identityOf(config, setup));
  try {
    if (answers.count > 0) log.info(`${answers.count} of ${count} prompts are answered already`);
    if (answers.count < count) {
      const sequences = Math.min(config.max_num_seqs, count - answers.count);
      const each = Math.min(longest + config.max_new_tokens, setup.spec.maxPositions);
      const rows = config.kv_cache_tokens ?? { most: sequences * each, least: each };
      const room = { sequences, rows, waiting: sequences };
      await withScheduler(config, log, { setup, room }, (scheduler) =>
        answerAll({ config, log, setup, language, scheduler, answers, count }, promptRows(file, language)),
      );
    }
    await answers.finish();
  } catch (error) {
    await answers.close().catch(() => {});
    throw error;
  }
}

/** A model without a tokenizer can answer prompts of ids. If any row has text, it must have a tokenizer. */
async function languageFor(file: PromptFile, setup: ModelSetup, config: Settings, log: Logger): Promise<Language> {
  const none: Language = { tokenizer: null, template: null };
  try {
    for await (const _ of promptRows(file, none));
    return await languageOf(setup, config, false, log);
  } catch (error) {
    if (!(error instanceof PipeloraError) || error.code !== "PL_TOKENIZER_INVALID") throw error;
  }
  return languageOf(setup, config, true, log);
}

/** Checks all prompts. Error: PL_DATASET_INVALID for a prompt that leaves no room for an answer, or that has a key which answers use. */
async function measure(
  file: PromptFile,
  language: Language,
  { spec }: ModelSetup,
): Promise<{ count: number; longest: number }> {
  let count = 0;
  let longest = 0;
  for await (const { index, row, ids } of promptRows(file, language)) {
    const taken = OWN.find((key) => Object.hasOwn(row, key));
    if (taken !== undefined) {
      throw new PipeloraError(
        "PL_DATASET_INVALID",
        `${file.path}: prompt ${index + 1} has the key "${taken}", under which its answer would be written`,
        {
          hint: "Give that key another name.",
        },
      );
    }
    const wrong = ids.find((id) => id >= spec.shape.vocab);
    if (ids.length >= spec.maxPositions || wrong !== undefined) {
      const what =
        wrong === undefined
          ? `has ${ids.length} tokens, and the model takes ${spec.maxPositions} with the answer`
          : `holds the id ${wrong}, outside the vocabulary of ${spec.shape.vocab}`;
      throw new PipeloraError("PL_DATASET_INVALID", `${file.path}: prompt ${index + 1} ${what}`, {
        hint: "Shorten it, or leave it out.",
      });
    }
    count++;
    longest = Math.max(longest, ids.length);
  }
  return { count, longest };
}

interface Work {
  readonly config: Settings;
  readonly log: Logger;
  readonly setup: ModelSetup;
  readonly language: Language;
  readonly scheduler: Scheduler;
  readonly answers: AnswerFile;
  readonly count: number;
}

async function answerAll(work: Work, prompts: AsyncIterable<PromptRow>): Promise<void> {
  const { config, log, scheduler, answers, count } = work;
  const began = { at: performance.now(), count: answers.count };
  const progress = setInterval(() => log.info(progressText(work, began)), PROGRESS_MS);
  const underWay = new Set<Promise<void>>();
  let failed = 0;
  try {
    for await (const prompt of prompts) {
      if (answers.has(prompt.index)) continue;
      // Twice as many as can run, so that a free place is taken at once.
      while (underWay.size >= 2 * config.max_num_seqs) await Promise.race(underWay);
      const one = answer(work, prompt).then((good) => {
        underWay.delete(one);
        if (!good) failed++;
      });
      one.catch(() => {});
      underWay.add(one);
    }
    await Promise.all(underWay);
  } finally {
    clearInterval(progress);
  }
  const { newTokens } = scheduler.state();
  const seconds = (performance.now() - began.at) / 1000;
  log.info(
    `answered ${answers.count - began.count} prompts, ${newTokens} tokens, ${(newTokens / seconds).toFixed(0)} tokens/s`,
  );
  if (failed > 0) {
    throw new PipeloraError(
      "PL_ENGINE_FAILED",
      `${failed} of ${count} prompts got no answer. The log has the reason for each`,
      {
        hint: "Run the command again: what was answered stays.",
      },
    );
  }
}

/** Whether there is one. */
async function answer({ config, log, setup, language, scheduler, answers }: Work, prompt: PromptRow): Promise<boolean> {
  let done: Reply;
  try {
    done = await reply(
      scheduler,
      language.tokenizer,
      {
        prompt: prompt.ids,
        maxNewTokens: Math.min(config.max_new_tokens, scheduler.mostTokens - prompt.ids.length),
        stopIds:
          config.stop_ids === null
            ? stopIdsOf({ spec: setup.spec, template: language.template })
            : new Set(config.stop_ids),
        stops: config.stop ?? [],
        choice: tokenChoice(config),
      },
      () => {},
    );
  } catch (error) {
    if (!(error instanceof PipeloraError) || error.code !== "PL_ENGINE_FAILED") throw error;
    log.error(`prompt ${prompt.index + 1}: ${error.message}`);
    return false;
  }
  const { ids, text, reason } = done;
  await answers.add(prompt.index, { ...prompt.row, output_ids: ids, text, finish_reason: reason });
  return true;
}

function progressText({ answers, scheduler, count }: Work, began: { at: number; count: number }): string {
  const seconds = (performance.now() - began.at) / 1000;
  const done = answers.count - began.count;
  const rate = scheduler.state().newTokens / seconds;
  const left = done === 0 ? "" : `, ${Math.ceil(((count - answers.count) * seconds) / done)} s left`;
  return `answered ${answers.count} of ${count} prompts, ${rate.toFixed(0)} tokens/s${left}`;
}

/** A hash of everything that decides the answers: prompts, model and settings. */
async function identityOf(config: Settings, setup: ModelSetup): Promise<string> {
  const hash = createHash("sha256").update(await checkpointFingerprint(setup.checkpoint!));
  for (const path of [config.input!, setup.adapter?.weights.path]) {
    hash.update("\0");
    if (path !== undefined) for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer);
  }
  hash.update(JSON.stringify(DECISIVE.map((key) => config[key] ?? null)));
  return hash.digest("hex");
}
