import { basename } from "node:path";
import { exitCodeOfSignal } from "../../common/exit-codes.ts";
import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import type { ServedModel, Service } from "../../serve/service.ts";
import { Interrupts } from "../cluster/interrupts.ts";
import { stopIdsOf } from "../generation/conversation.ts";
import { languageOf } from "../generation/sample.ts";
import { usualRows, type WantedRoom, withScheduler } from "../generation/scheduled-model.ts";
import { type ModelSetup, setUpModel } from "../planning/model-setup.ts";
import { type HttpApi, openHttpApi } from "./http-api.ts";

const DEFAULT_ADDRESS = "127.0.0.1:8000";
/** Answers under way may take so long once a stop was asked for. */
const GRACE_MS = 30_000;

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
    const { name, adapter } = adapterOf(config);
    const setup = await setUpModel({ ...config, adapter }, log, { weights: true, lora: false });
    for (const warning of setup.warnings) log.warn(warning);
    const model = await servedModel(config, setup, name, log);
    const room: WantedRoom = {
      sequences: config.max_num_seqs,
      rows: config.kv_cache_tokens ?? usualRows(config.max_num_seqs, setup),
      waiting: Math.max(0, config.max_concurrent_requests - config.max_num_seqs),
    };
    await withScheduler(config, log, { setup, room }, async (scheduler) => {
      const service: Service = { ...serviceSettings(config), scheduler, models: [model], step: () => null };
      const address = config.http ?? DEFAULT_ADDRESS;
      api = await openHttpApi(config, { address, service, ready: () => scheduler.attached, log });
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
    await (api as HttpApi | null)?.close(0);
  }
}

/** NAME=DIR, or a folder whose last part is the name. */
function adapterOf({ adapter }: Pick<Config, "adapter">): { name: string | null; adapter: string | null } {
  if (adapter === null) return { name: null, adapter: null };
  const [, name, dir] = /^([^=/]+)=(.+)$/.exec(adapter) ?? [null, basename(adapter), adapter];
  return { name: name!, adapter: dir! };
}

async function servedModel(
  config: Config,
  setup: ModelSetup,
  adapter: string | null,
  log: Logger,
): Promise<ServedModel> {
  const language = await languageOf(setup, config, true, log);
  const base = config.served_model_name ?? basename(setup.name);
  return {
    id: adapter ?? base,
    parent: adapter === null ? null : base,
    tokenizer: language.tokenizer!,
    template: language.template,
    stopIds: stopIdsOf({ spec: setup.spec, template: language.template }),
  };
}

function serviceSettings(config: Config): Pick<Service, "created" | "defaultTokens" | "timeoutMs"> {
  return {
    created: Math.floor(Date.now() / 1000),
    defaultTokens: config.max_new_tokens,
    timeoutMs: config.request_timeout * 1000,
  };
}
