import { basename } from "node:path";
import type { Registry } from "prom-client";
import { PipeloraError } from "../../../common/errors.ts";
import type { Logger } from "../../../common/log.ts";
import type { Config } from "../../../config/options.ts";
import { reply } from "../../../generation/reply.ts";
import { Scheduler, type SchedulerLimits } from "../../../generation/scheduler.ts";
import { RunFolder } from "../../../serve/page/run-folder.ts";
import type { Service } from "../../../serve/service.ts";
import type { Pipeline } from "../../cluster/pipeline.ts";
import { stopIdsOf } from "../../generation/conversation.ts";
import { type PromptRow, promptRows } from "../../generation/prompt-rows.ts";
import { type Language, servedLanguage } from "../../generation/sample.ts";
import { usualRows } from "../../generation/scheduled-model.ts";
import { tokenChoice } from "../../generation/token-choice.ts";
import type { ModelSetup } from "../../planning/model-setup.ts";
import type { CacheNeeds } from "../../planning/workload.ts";
import { type HttpApi, openHttpApi } from "../../serving/http-api.ts";
import type { LiveRun } from "../observers/live-run.ts";
import type { Reporter } from "../reporter.ts";
import { SampleFile } from "./sample-file.ts";

/** Tokens of all sequences together that room is made for beside training where nothing is said. */
const ROWS_BESIDE = 8192;
/** Answers under way at the run's end were begun before it: they are done. */
const GRACE_MS = 1_000;

/** What an address tells of a run in training, beside its replies. */
export interface HttpShows {
  /** Of /metrics. */
  readonly registry: Registry;
  /** Of the page; null: nobody will see it. */
  readonly live: LiveRun | null;
}

/** What is placed beside the training. */
export interface PlacedCache {
  readonly pipeline: Pipeline;
  readonly rows: number;
  /** Of the pipeline. */
  readonly stages: number;
  /** Most tokens of a micro-batch. */
  readonly batchTokens: number;
}

/** Replies of a model in training, from the weights that its workers hold: over HTTP between steps, and to prompts at evaluations. */
export class LiveReplies {
  readonly #config: Config;
  readonly #setup: ModelSetup;
  readonly #language: Language;
  readonly #prompts: readonly PromptRow[];
  readonly #samples: SampleFile;
  readonly #log: Logger;
  readonly #http: HttpShows;
  #limits: Omit<SchedulerLimits, "waiting"> | null = null;
  #scheduler: Scheduler | null = null;
  #api: HttpApi | null = null;
  #pipeline: Pipeline | null = null;
  #step = 0;

  private constructor(
    { config, setup, log, http }: { config: Config; setup: ModelSetup; log: Logger; http: HttpShows },
    language: Language,
    prompts: readonly PromptRow[],
  ) {
    this.#config = config;
    this.#setup = setup;
    this.#log = log;
    this.#http = http;
    this.#language = language;
    this.#prompts = prompts;
    this.#samples = new SampleFile(config.output_dir!);
  }

  /** Reads tokenizer and prompts; null where nobody is to be answered. Errors: PL_TOKENIZER_INVALID, PL_DATASET_INVALID, PL_TEMPLATE_INVALID. */
  static async open(
    config: Config,
    setup: ModelSetup,
    { log, http }: { readonly log: Logger; readonly http: HttpShows },
  ): Promise<LiveReplies | null> {
    const { http: address, sample_prompts: path } = config;
    if (address === null && path === null) return null;
    const language = await servedLanguage(setup, config, log);
    const prompts: PromptRow[] = [];
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
    return new LiveReplies({ config, setup, log, http }, language, prompts);
  }

  /** Room that the plan is to leave, most wanted first. A run that was placed keeps its room. */
  rooms(): Pick<CacheNeeds, "sequences" | "rows">[] {
    const sequences = this.#config.max_num_seqs;
    const usual = usualRows(sequences, this.#setup);
    const fixed = this.#limits?.rows ?? this.#config.kv_cache_tokens;
    const counts: number[] = [];
    if (fixed !== null) counts.push(fixed);
    else {
      // Every prompt of the run's own, and some reply to it, must find room.
      const least = Math.max(usual.least, ...this.#prompts.map(({ ids }) => ids.length + 1));
      for (let rows = Math.min(ROWS_BESIDE, usual.most); rows > least; rows = Math.ceil(rows / 2)) counts.push(rows);
      counts.push(least);
    }
    return counts.map((rows) => ({ sequences, rows }));
  }

  /** Opens the API, where one was asked for; requests are taken once the model is placed. Errors: PL_PORT_UNAVAILABLE, PL_TLS_INVALID. */
  async listen(): Promise<void> {
    const { http: address } = this.#config;
    if (address === null) return;
    const service = this.#service();
    const ready = () => this.#scheduler !== null;
    const { live } = this.#http;
    this.#api = await openHttpApi(this.#config, {
      ...{ address, ready, log: this.#log },
      api: { service, registry: this.#http.registry },
      runs: live === null ? null : new RunFolder(live.dir, live),
    });
    this.#log.info(`answering between steps at ${this.#api.url}/v1 as ${service.models[0]!.id}`);
    if (live !== null) this.#log.info(`the run as it goes: ${this.#api.url}`);
  }

  /** Makes the cache; from now on requests are taken. Errors: PL_OUT_OF_MEMORY. */
  async placed({ pipeline, rows, stages, batchTokens }: PlacedCache, step: number): Promise<void> {
    const { max_num_seqs: sequences, max_concurrent_requests: requests } = this.#config;
    await pipeline.openCache(sequences, rows);
    this.#pipeline = pipeline;
    this.#step = step;
    await this.#samples.goOnFrom(step);
    const limits = {
      ...{ sequences, rows, positions: this.#setup.spec.maxPositions, rounds: stages },
      roundTokens: Math.min(this.#config.max_num_batched_tokens, batchTokens),
    };
    this.#limits ??= limits;
    // Whoever asks waits for the step under way.
    this.#scheduler ??= new Scheduler({ ...limits, waiting: requests });
  }

  get asked(): boolean {
    return (this.#scheduler?.state().waiting ?? 0) > 0;
  }

  /** Answers those that wait with the weights as they are, and says what that cost. Errors: the pipeline's. */
  async answer(step: number, reporter: Reporter): Promise<void> {
    const scheduler = this.#scheduler!;
    const before = scheduler.state();
    const started = performance.now();
    this.#step = step;
    await scheduler.answerWaiting(this.#pipeline!);
    const seconds = (performance.now() - started) / 1000;
    const { newTokens } = scheduler.state();
    const count = before.waiting;
    reporter.note(
      `answered ${count} ${count === 1 ? "request" : "requests"} after step ${step}: ${newTokens - before.newTokens} tokens in ${seconds.toFixed(2)} s, ${(seconds / count).toFixed(2)} s a request, while training waited`,
    );
  }

  /** Answers the prompts of --sample-prompts, into the log and samples.jsonl. Errors: the pipeline's, PL_OUTPUT_UNWRITABLE. */
  async sample(step: number, reporter: Reporter): Promise<void> {
    if (this.#prompts.length === 0) return;
    // A scheduler of its own: requests that wait are answered in their turn.
    const { tokenizer, template } = this.#language;
    const scheduler = new Scheduler({ ...this.#limits!, waiting: this.#prompts.length });
    const replies = this.#prompts.map(({ ids }) =>
      reply(
        scheduler,
        tokenizer,
        {
          prompt: ids,
          maxNewTokens: Math.max(1, Math.min(this.#config.max_new_tokens, scheduler.mostTokens - ids.length)),
          stopIds: stopIdsOf({ spec: this.#setup.spec, template }),
          stops: [],
          choice: tokenChoice({ ...this.#config, do_sample: false, repetition_penalty: 1 }),
        },
        () => {},
      ),
    );
    const all = Promise.all(replies);
    all.catch(() => {});
    await scheduler.answerWaiting(this.#pipeline!);
    const done = await all;
    await this.#samples.add(
      done.map(({ ids, text, reason }, at) => {
        const { index, row } = this.#prompts[at]!;
        return { ...row, step, index, output_ids: ids, text, finish_reason: reason };
      }),
    );
    reporter.samples(
      done.map(({ text }, at) => ({ prompt: shownPrompt(this.#prompts[at]!, this.#language), reply: text! })),
      step,
    );
  }

  /** Ends the API: who still waits is told. */
  async close(): Promise<void> {
    this.#scheduler?.fail(new PipeloraError("PL_INTERRUPTED", "the training has ended"));
    await this.#api?.close(GRACE_MS);
  }

  #service(): Service {
    const {
      output_dir: dir,
      served_model_name: name,
      max_new_tokens: defaultTokens,
      request_timeout: seconds,
    } = this.#config;
    const { spec } = this.#setup;
    const { tokenizer, template } = this.#language;
    return {
      scheduler: () => this.#scheduler,
      models: [
        {
          ...{
            adapter: 0,
            id: name ?? basename(dir!),
            parent: basename(this.#setup.name),
            tokenizer: tokenizer!,
            template,
          },
          stopIds: stopIdsOf({ spec, template }),
        },
      ],
      created: Math.floor(Date.now() / 1000),
      defaultTokens,
      timeoutMs: seconds * 1000,
      step: () => this.#step,
    };
  }
}

function shownPrompt({ row, ids }: PromptRow, { tokenizer }: Language): string {
  return typeof row["prompt"] === "string" ? row["prompt"] : tokenizer!.decode(ids);
}
