import { resolve } from "node:path";
import type { Registry } from "prom-client";
import { PipeloraError } from "../../../common/errors.ts";
import type { Logger } from "../../../common/log.ts";
import type { Config } from "../../../config/options.ts";
import type { Round, RoundRunner } from "../../../generation/round.ts";
import { Scheduler, type SchedulerLimits } from "../../../generation/scheduler.ts";
import { RunFolder } from "../../../serve/page/run-folder.ts";
import type { Service } from "../../../serve/service.ts";
import type { Pipeline } from "../../cluster/pipeline.ts";
import { usualRows } from "../../generation/scheduled-model.ts";
import type { ModelSetup } from "../../planning/model-setup.ts";
import type { CacheNeeds } from "../../planning/workload.ts";
import { type HttpApi, openHttpApi } from "../../serving/http-api.ts";
import type { LiveRun } from "../observers/live-run.ts";
import type { Reporter } from "../reporter.ts";
import { type AdapterToAsk, AnsweringAdapter } from "./answering-adapter.ts";

/** Rows of the cache beside training, by default. */
const ROWS_BESIDE = 8192;
/** At the run's end, running answers get this long to finish. */
const GRACE_MS = 1_000;

/** What the HTTP address serves besides replies. */
export interface HttpShows {
  /** The metrics for /metrics. */
  readonly registry: Registry;
  /** The run's adapters for the page; empty: there is no page. */
  readonly live: readonly LiveRun[];
}

/** The key/value cache beside training. */
export interface PlacedCache {
  readonly pipeline: Pipeline;
  readonly rows: number;
  /** How many stages the pipeline has. */
  readonly stages: number;
  /** The most tokens of a micro-batch. */
  readonly batchTokens: number;
}

/** An adapter of an attempt. A list of these is in the order of numbers in the workers' engines. */
export interface Progress {
  /** Its place among all adapters of the run. */
  readonly index: number;
  /** How many updates its weights have had. */
  readonly step: number;
}

/**
 * Replies of adapters in training, from the weights in their workers: to HTTP requests between steps, and to prompts at evaluations. A request
 * carries an adapter's place in the run, which stays the same when the run is restarted with fewer adapters.
 */
export class LiveReplies {
  readonly #config: Config;
  readonly #setup: ModelSetup;
  readonly #adapters: readonly AnsweringAdapter[];
  readonly #log: Logger;
  readonly #http: HttpShows;
  #limits: Omit<SchedulerLimits, "waiting"> | null = null;
  #scheduler: Scheduler | null = null;
  #api: HttpApi | null = null;
  #pipeline: Pipeline | null = null;

  private constructor(
    config: Config,
    { setup, adapters }: { readonly setup: ModelSetup; readonly adapters: readonly AnsweringAdapter[] },
    { log, http }: { readonly log: Logger; readonly http: HttpShows },
  ) {
    this.#config = config;
    this.#setup = setup;
    this.#adapters = adapters;
    this.#log = log;
    this.#http = http;
  }

  /** Returns null if the run's `config` asks for no replies. Errors: PL_TOKENIZER_INVALID, PL_DATASET_INVALID, PL_TEMPLATE_INVALID. */
  static async open(
    config: Config,
    adapters: readonly AdapterToAsk[],
    to: { readonly log: Logger; readonly http: HttpShows },
  ): Promise<LiveReplies | null> {
    if (config.http === null && adapters.every((adapter) => adapter.config.sample_prompts === null)) return null;
    const asked: AnsweringAdapter[] = [];
    for (const adapter of adapters) asked.push(await AnsweringAdapter.open(adapter, to.log));
    return new LiveReplies(config, { setup: adapters[0]!.setup, adapters: asked }, to);
  }

  /** Sizes of the cache to try in the plan, the preferred first. A run that was placed keeps its size. */
  rooms(): Pick<CacheNeeds, "sequences" | "rows">[] {
    const sequences = this.#config.max_num_seqs;
    const usual = usualRows(sequences, this.#setup);
    const fixed = this.#limits?.rows ?? this.#config.kv_cache_tokens;
    const counts: number[] = [];
    if (fixed !== null) counts.push(fixed);
    else {
      // Every prompt of the run, and at least one token of its reply, must fit.
      const least = Math.max(usual.least, ...this.#adapters.map(({ leastRows }) => leastRows));
      for (let rows = Math.min(ROWS_BESIDE, usual.most); rows > least; rows = Math.ceil(rows / 2)) counts.push(rows);
      counts.push(least);
    }
    return counts.map((rows) => ({ sequences, rows }));
  }

  /** Opens the API if the run asks for one. It takes requests after placed(). Errors: PL_PORT_UNAVAILABLE, PL_TLS_INVALID. */
  async listen(): Promise<void> {
    const { http: address, output_dir: dir } = this.#config;
    if (address === null) return;
    const { live, registry } = this.#http;
    this.#api = await openHttpApi(this.#config, {
      ...{ address, log: this.#log },
      ready: () => this.#scheduler !== null,
      api: { service: this.#service(), registry },
      runs: live.length === 0 ? null : new RunFolder(resolve(dir!), live),
    });
    const { url } = this.#api;
    const names = this.#adapters.map(({ id }) => id).join(", ");
    this.#log.info(`answering between steps at ${url}/v1 as ${names}`);
    if (live.length > 0) this.#log.info(`the run as it goes: ${url}`);
  }

  /** Makes the cache. From now on requests are taken. `progress`: the attempt's adapters. Errors: PL_OUT_OF_MEMORY. */
  async placed({ pipeline, rows, stages, batchTokens }: PlacedCache, progress: readonly Progress[]): Promise<void> {
    const { max_num_seqs: sequences, max_concurrent_requests: requests } = this.#config;
    await pipeline.openCache(sequences, rows);
    this.#pipeline = pipeline;
    for (const adapter of this.#adapters) adapter.leave();
    for (const [number, { index, step }] of progress.entries()) await this.#adapters[index]!.place(number, step);
    const limits = {
      ...{ sequences, rows, positions: this.#setup.spec.maxPositions, rounds: stages },
      roundTokens: Math.min(this.#config.max_num_batched_tokens, batchTokens),
    };
    this.#limits ??= limits;
    // A request waits for the current step.
    this.#scheduler ??= new Scheduler({ ...limits, waiting: requests });
    for (const [index, { id, number }] of this.#adapters.entries()) {
      const ended = new PipeloraError("PL_REQUEST_INVALID", `${id} has ended: the run goes on without it`);
      if (number === null) this.#scheduler.fail(ended, index);
    }
  }

  get asked(): boolean {
    return (this.#scheduler?.state().waiting ?? 0) > 0;
  }

  /** Answers waiting requests with the present weights, and reports how long that took. Errors: those of the pipeline. */
  async answer(progress: readonly Progress[], reporter: Reporter): Promise<void> {
    for (const { index, step } of progress) this.#adapters[index]!.updated(step);
    const scheduler = this.#scheduler!;
    const before = scheduler.state();
    const started = performance.now();
    await scheduler.answerWaiting(this.#runner());
    const seconds = (performance.now() - started) / 1000;
    const { newTokens } = scheduler.state();
    const count = before.waiting;
    const steps = [...new Set(progress.map(({ step }) => step))];
    reporter.note(
      `answered ${count} ${count === 1 ? "request" : "requests"} after step ${steps.join(", ")}: ${newTokens - before.newTokens} tokens in ${seconds.toFixed(2)} s, ${(seconds / count).toFixed(2)} s a request, while training waited`,
    );
  }

  /** Answers an adapter's --sample-prompts. Replies go to the log and to samples.jsonl. Errors: those of the pipeline, PL_OUTPUT_UNWRITABLE. */
  async sample({ index, step }: Progress, reporter: Reporter): Promise<void> {
    const samples = await this.#adapters[index]!.sample(this.#pipeline!, this.#limits!, step);
    if (samples.length > 0) reporter.samples(samples, step);
  }

  /** Closes the API. Waiting requests get an error. */
  async close(): Promise<void> {
    this.#scheduler?.fail(new PipeloraError("PL_INTERRUPTED", "the training has ended"));
    await this.#api?.close(GRACE_MS);
  }

  /** Runs rounds in the pipeline, with adapters' numbers in its engines. */
  #runner(): RoundRunner {
    const pipeline = this.#pipeline!;
    return { infer: (round: Round) => pipeline.infer({ ...round, adapter: this.#adapters[round.adapter]!.number! }) };
  }

  #service(): Service {
    const { max_new_tokens: defaultTokens, request_timeout: seconds } = this.#config;
    const served = this.#adapters.map((adapter, index) => adapter.served(index));
    return {
      scheduler: () => this.#scheduler,
      // Before the first placement every adapter takes requests: they are answered later.
      models: () => served.filter((_, index) => this.#pipeline === null || this.#adapters[index]!.number !== null),
      created: Math.floor(Date.now() / 1000),
      defaultTokens,
      timeoutMs: seconds * 1000,
    };
  }
}
