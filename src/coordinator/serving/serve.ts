import { basename } from "node:path";
import { Registry } from "prom-client";
import { exitCodeOfSignal } from "../../common/exit-codes.ts";
import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import { rowTemplate } from "../../data/templates.ts";
import { loadTokenizer } from "../../formats/tokenizer/load.ts";
import type { ServedModel, Service } from "../../serve/service.ts";
import { Interrupts } from "../cluster/interrupts.ts";
import { openAdapterSet } from "../generation/adapter-set.ts";
import { stopIdsOf } from "../generation/conversation.ts";
import { usualRows, type WantedRoom, withScheduler } from "../generation/scheduled-model.ts";
import { type ModelSetup, setUpModel } from "../planning/model-setup.ts";
import { dateOf } from "../planning/row-templates.ts";
import { type HttpApi, openHttpApi } from "./http-api.ts";

const DEFAULT_ADDRESS = "127.0.0.1:8000";
/** Answers under way may take so long once a stop was asked for. */
const GRACE_MS = 30_000;
/** Refusals may take so long once nothing can be answered any more. */
const FAREWELL_MS = 1_000;

/**
 * The `serve` command: loads the model over the workers and answers until it is told to stop. Says once that it listens.
 * Errors: whatever setting up raises; the loss of a worker after which nothing is left to try; PL_INTERRUPTED before it listened.
 */
export async function serve(config: Config, log: Logger, onListening: (url: string) => void): Promise<void> {
  let api: HttpApi | null = null;
  const interrupts = new Interrupts(
    () => log.info("answers under way are finished; once more stops at once"),
    (signal) => process.exit(exitCodeOfSignal(signal)),
  );
  const serveUntilStopped = async () => {
    const base = await setUpModel({ ...config, adapter: null }, log, { weights: true, lora: false });
    for (const warning of base.warnings) log.warn(warning);
    const name = config.served_model_name ?? basename(base.name);
    const adapters = await openAdapterSet(config, base, name, log);
    const setup: ModelSetup = { ...base, lora: adapters?.lora ?? null };
    const models = await servedModels(config, setup, [name, ...(adapters?.names ?? [])], log);
    const room: WantedRoom = {
      sequences: config.max_num_seqs,
      rows: config.kv_cache_tokens ?? usualRows(config.max_num_seqs, setup),
      waiting: Math.max(0, config.max_concurrent_requests - config.max_num_seqs),
    };
    await withScheduler(config, log, { setup, room, adapters }, async (scheduler) => {
      const service: Service = { ...serviceSettings(config), scheduler, models, step: () => null };
      const address = config.http ?? DEFAULT_ADDRESS;
      api = await openHttpApi(config, {
        address,
        service,
        ready: () => scheduler.attached,
        log,
        registry: new Registry(),
      });
      log.info(`answering at ${api.url}/v1 as ${service.models.map(({ id }) => id).join(", ")}`);
      onListening(api.url);
      try {
        await interrupts.first;
      } catch {
        await api.close(GRACE_MS);
      }
    });
  };
  try {
    const serving = serveUntilStopped();
    // Before it listens there is nothing to finish.
    const stopped = interrupts.first.catch((error: unknown) => (api === null ? Promise.reject(error) : serving));
    await Promise.race([serving, stopped]);
  } finally {
    interrupts.dispose();
    await (api as HttpApi | null)?.close(FAREWELL_MS);
  }
}

/** The base, then its adapters: one tokenizer and template for all. */
async function servedModels(
  config: Config,
  setup: ModelSetup,
  names: readonly string[],
  log: Logger,
): Promise<ServedModel[]> {
  const tokenizer = await loadTokenizer(setup.dir);
  const template = rowTemplate(tokenizer, { name: config.template, system: config.system, ...dateOf(config) });
  if (template.remark !== null) log.warn(template.remark);
  if (template.source === null) log.warn("the tokenizer has no chat template: only /v1/completions answers");
  const stopIds = stopIdsOf({ spec: setup.spec, template });
  return names.map((id, adapter) => ({
    ...{ id, adapter, parent: adapter === 0 ? null : names[0]!, tokenizer, template, stopIds },
  }));
}

function serviceSettings(config: Config): Pick<Service, "created" | "defaultTokens" | "timeoutMs"> {
  return {
    created: Math.floor(Date.now() / 1000),
    defaultTokens: config.max_new_tokens,
    timeoutMs: config.request_timeout * 1000,
  };
}
