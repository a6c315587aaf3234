import { basename } from "node:path";
import { PipeloraError } from "../../../common/errors.ts";
import type { Logger } from "../../../common/log.ts";
import type { Config } from "../../../config/options.ts";
import { reply } from "../../../generation/reply.ts";
import type { RoundRunner } from "../../../generation/round.ts";
import { Scheduler, type SchedulerLimits } from "../../../generation/scheduler.ts";
import type { ServedModel } from "../../../serve/service.ts";
import { stopIdsOf } from "../../generation/conversation.ts";
import { type PromptRow, promptRows } from "../../generation/prompt-rows.ts";
import { type Language, servedLanguage } from "../../generation/sample.ts";
import { tokenChoice } from "../../generation/token-choice.ts";
import type { ModelSetup } from "../../planning/model-setup.ts";
import type { Sample } from "../reporter.ts";
import { SampleFile } from "./sample-file.ts";

/** An adapter of a run that can answer requests. */
export interface AdapterToAsk {
  /** Null: it is the only one. */
  readonly name: string | null;
  readonly config: Config;
  readonly setup: ModelSetup;
}

/** Where an adapter's weights are in the workers while it trains. */
interface Placed {
  /** The adapter's number in the workers' engines. */
  readonly number: number;
  step: number;
}

/** An adapter in training that answers requests: its tokenizer and template, its prompts for evaluations, and where its weights are. */
export class AnsweringAdapter {
  readonly #config: Config;
  readonly #setup: ModelSetup;
  readonly #language: Language;
  readonly #prompts: readonly PromptRow[];
  readonly #samples: SampleFile;
  /** Its name in requests. */
  readonly id: string;
  #placed: Placed | null = null;

  private constructor({ name, config, setup }: AdapterToAsk, language: Language, prompts: readonly PromptRow[]) {
    this.#config = config;
    this.#setup = setup;
    this.#language = language;
    this.#prompts = prompts;
    this.#samples = new SampleFile(config.output_dir!);
    this.id = name ?? config.served_model_name ?? basename(config.output_dir!);
  }

  /** Reads tokenizer and prompts. Errors: PL_TOKENIZER_INVALID, PL_DATASET_INVALID, PL_TEMPLATE_INVALID. */
  static async open(adapter: AdapterToAsk, log: Logger): Promise<AnsweringAdapter> {
    const { config, setup } = adapter;
    const language = await servedLanguage(setup, config, log);
    const prompts: PromptRow[] = [];
    const path = config.sample_prompts;
    if (path !== null) {
      const plain = !/\.jsonl?$/.test(path);
      const most = Math.min(setup.spec.maxPositions, config.kv_cache_tokens ?? Number.POSITIVE_INFINITY);
      for await (const prompt of promptRows({ path, plain }, language)) {
        if (prompt.ids.length >= most) {
          const long = `${path}: prompt ${prompt.index + 1} has ${prompt.ids.length} tokens, and a sequence has room for ${most} with the reply`;
          throw new PipeloraError("PL_DATASET_INVALID", long, { hint: "Shorten it, or leave it out." });
        }
        prompts.push(prompt);
      }
    }
    return new AnsweringAdapter(adapter, language, prompts);
  }

  /** The fewest cache rows in which every prompt has room for one token of its reply; 0 without prompts. */
  get leastRows(): number {
    return Math.max(0, ...this.#prompts.map(({ ids }) => ids.length + 1));
  }

  /** Its number in the workers' engines; null if its weights are not there. */
  get number(): number | null {
    return this.#placed?.number ?? null;
  }

  /** Notes that its weights, after `step` updates, are in the engines from now on. */
  async place(number: number, step: number): Promise<void> {
    this.#placed = { number, step };
    await this.#samples.goOnFrom(step);
  }

  /** Notes that it has ended and is not part of the attempt. */
  leave(): void {
    this.#placed = null;
  }

  updated(step: number): void {
    if (this.#placed !== null) this.#placed.step = step;
  }

  /** The adapter as a model of the API. `index`: its number in requests. */
  served(index: number): ServedModel {
    const { tokenizer, template } = this.#language;
    return {
      ...{ id: this.id, adapter: index, parent: basename(this.#setup.name), tokenizer: tokenizer!, template },
      stopIds: stopIdsOf({ spec: this.#setup.spec, template }),
      step: () => this.#placed?.step ?? null,
    };
  }

  /**
   * Answers its prompts greedily, writes the replies to samples.jsonl, and returns them for the log. Errors: those of the runner,
   * PL_OUTPUT_UNWRITABLE.
   */
  async sample(
    runner: RoundRunner,
    limits: Omit<SchedulerLimits, "waiting">,
    step: number,
  ): Promise<readonly Sample[]> {
    if (this.#prompts.length === 0) return [];
    // A scheduler of its own, because waiting requests are answered later.
    const scheduler = new Scheduler({ ...limits, waiting: this.#prompts.length });
    const { tokenizer, template } = this.#language;
    const all = Promise.all(
      this.#prompts.map(({ ids }) =>
        reply(
          scheduler,
          tokenizer,
          {
            prompt: ids,
            maxNewTokens: Math.max(1, Math.min(this.#config.max_new_tokens, scheduler.mostTokens - ids.length)),
            stopIds: stopIdsOf({ spec: this.#setup.spec, template }),
            stops: [],
            choice: tokenChoice({ ...this.#config, do_sample: false, repetition_penalty: 1 }),
            adapter: this.#placed!.number,
          },
          () => {},
        ),
      ),
    );
    all.catch(() => {});
    await scheduler.answerWaiting(runner);
    const done = await all;
    await this.#samples.add(
      done.map(({ ids, text, reason }, at) => {
        const { index, row } = this.#prompts[at]!;
        return { ...row, step, index, output_ids: ids, text, finish_reason: reason };
      }),
    );
    return done.map(({ text }, at) => ({ prompt: this.#shown(this.#prompts[at]!), reply: text! }));
  }

  #shown({ row, ids }: PromptRow): string {
    return typeof row["prompt"] === "string" ? row["prompt"] : this.#language.tokenizer!.decode(ids);
  }
}
