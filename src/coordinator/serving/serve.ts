import { basename } from "node:path";
import { Registry } from "prom-client";
import { exitCodeOfSignal } from "../../common/exit-codes.ts";
import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import type { Scheduler } from "../../generation/scheduler.ts";
import type { ServedModel, Service } from "../../serve/service.ts";
import { Interrupts } from "../cluster/interrupts.ts";
import { openAdapterSet } from "../generation/adapter-set.ts";
import { stopIdsOf } from "../generation/conversation.ts";
import { servedLanguage } from "../generation/sample.ts";
import { type ModelToSchedule, usualRows, withScheduler } from "../generation/scheduled-model.ts";
import { type ModelSetup, setUpModel } from "../planning/model-setup.ts";
import { type HttpApi, openHttpApi } from "./http-api.ts";

const DEFAULT_ADDRESS = "127.0.0.1:8000";
/** Time that answers under way get once a stop was asked for. */
const GRACE_MS = 30_000;
/** Time for sending refusals once the model can't answer any more. */
const FAREWELL_MS = 1_000;

/**
 * The `serve` command: loads the model over the workers and answers until it is told to stop. Says once that it answers.
 * Errors: whatever setting up raises; the loss of a worker after which nothing is left to try; PL_INTERRUPTED before it answered.
 */
export async function serve(config: Config, log: Logger, onListening: (url: string) => void): Promise<void> {
  const interrupts = new Interrupts(
    () => log.info("answers under way are finished; once more stops at once"),
    (signal) => process.exit(exitCodeOfSignal(signal)),
  );
  const loaded: { scheduler: Scheduler | null } = { scheduler: null };
  let api: HttpApi | null = null;
  try {
    const { models, ...model } = await interrupts.during(prepare(config, log));
    const service: Service = {
      ...serviceSettings(config),
      models: () => models,
      scheduler: () => loaded.scheduler,
    };
    const ready = () => loaded.scheduler?.attached === true;
    // The address is opened first: one that is in use is found before a weight is read.
    const opened = await openHttpApi(config, {
      ...{ address: config.http ?? DEFAULT_ADDRESS, ready, log, runs: null },
      api: { service, registry: new Registry() },
    });
    api = opened;
    const serving = withScheduler(config, log, model, async (scheduler) => {
      loaded.scheduler = scheduler;
      log.info(`answering at ${opened.url}/v1 as ${models.map(({ id }) => id).join(", ")}`);
      onListening(opened.url);
      await interrupts.first.catch(() => {});
      await opened.close(GRACE_MS);
    });
    // Nothing is under way before the model is loaded.
    const stopped = interrupts.first.catch((error: unknown) =>
      loaded.scheduler === null ? Promise.reject(error) : serving,
    );
    await Promise.race([serving, stopped]);
  } finally {
    interrupts.dispose();
    await api?.close(FAREWELL_MS);
  }
}

/** What can be checked and read before a worker is needed. */
async function prepare(config: Config, log: Logger): Promise<ModelToSchedule & { models: readonly ServedModel[] }> {
  const base = await setUpModel({ ...config, adapter: null }, log, { weights: true, lora: false });
  for (const warning of base.warnings) log.warn(warning);
  const name = config.served_model_name ?? basename(base.name);
  const adapters = await openAdapterSet(config, base, name, log);
  const setup: ModelSetup = { ...base, lora: adapters?.lora ?? null };
  const sequences = config.max_num_seqs;
  return {
    setup,
    adapters,
    models: await servedModels(config, setup, [name, ...(adapters?.names ?? [])], log),
    room: {
      sequences,
      rows: config.kv_cache_tokens ?? usualRows(sequences, setup),
      waiting: Math.max(0, config.max_concurrent_requests - sequences),
    },
  };
}

/** The base, then its adapters: one tokenizer and template for all. */
async function servedModels(
  config: Config,
  setup: ModelSetup,
  names: readonly string[],
  log: Logger,
): Promise<ServedModel[]> {
  const { tokenizer, template } = await servedLanguage(setup, config, log);
  const stopIds = stopIdsOf({ spec: setup.spec, template });
  return names.map((id, adapter) => ({
    ...{ id, adapter, parent: adapter === 0 ? null : names[0]!, tokenizer, template, stopIds, step: () => null },
  }));
}

function serviceSettings(config: Config): Pick<Service, "created" | "defaultTokens" | "timeoutMs"> {
  return {
    created: Math.floor(Date.now() / 1000),
    defaultTokens: config.max_new_tokens,
    timeoutMs: config.request_timeout * 1000,
  };
}
