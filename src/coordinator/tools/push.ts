import { readdir, stat } from "node:fs/promises";
import { basename, join } from "node:path";
import { z } from "zod";
import { PipeloraError } from "../../common/errors.ts";
import { isFile, readJsonFile } from "../../common/files.ts";
import type { Config } from "../../config/options.ts";
import { ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, type Adapter, openAdapter } from "../../formats/adapter.ts";
import { listCheckpoints } from "../../formats/checkpoint-folders.ts";
import { TOKENIZER_FILES } from "../../formats/tokenizer/load.ts";
import { type Pushed, type PushedFile, pushFiles } from "../../hub/push.ts";
import { parseReference } from "../../hub/reference.ts";
import { hubSettings } from "../../hub/settings.ts";
import { asReference } from "../planning/named-models.ts";
import { type CardResults, modelCard } from "./model-card.ts";

const CARD = "README.md";
const STATE = "trainer_state.json";
const ARGS = "training_args.json";
const MAX_BYTES = 256 << 20;
const stateSchema = z.looseObject({
  global_step: z.number(),
  epoch: z.number(),
  best_metric: z.number().nullish(),
  best_global_step: z.number().nullish(),
  log_history: z.array(
    z.looseObject({ step: z.number(), loss: z.number().optional(), eval_loss: z.number().optional() }),
  ),
});

/**
 * Pushes an adapter's folder to a hub: weights, configuration, tokenizer, and a model card that states base, data, settings and results.
 * Checkpoints, logs and events stay here. Error: PL_CONFIG_INVALID for what is no name, PL_ADAPTER_INVALID, and those of hub/push.ts.
 */
export async function pushAdapter(
  config: Pick<Config, "name" | "adapter" | "private" | "commit_message">,
): Promise<Pushed & { readonly files: readonly string[] }> {
  const form = "owner/name or owner/name@branch";
  const { name, revision } = asReference(config.name!, parseReference(config.name!), form);
  if (!name.includes("/")) asReference(name, null, form);
  const dir = config.adapter!;
  const adapter = await openAdapter(dir);
  const names = [ADAPTER_WEIGHTS_FILE, ADAPTER_CONFIG_FILE, ...TOKENIZER_FILES];
  const present = new Set(await readdir(dir));
  const files = await Promise.all(
    names
      .filter((file) => present.has(file))
      .map(async (path): Promise<PushedFile> => {
        const file = join(dir, path);
        return { path, content: { file, bytes: (await stat(file)).size } };
      }),
  );
  const bytes = files.reduce((sum, { content }) => sum + ("bytes" in content ? content.bytes : 0), 0);
  const card: PushedFile = { path: CARD, content: { text: await cardOf(name, adapter, bytes) } };
  const pushed = await pushFiles(
    {
      name,
      branch: revision,
      private: config.private,
      files: [...files, card],
      title: config.commit_message ?? `Upload ${basename(dir)}`,
    },
    await hubSettings("huggingface"),
  );
  return { ...pushed, files: [...files.map(({ path }) => path), CARD] };
}

/** Where the run left the facts for the card: beside the adapter, else in its newest checkpoint. */
async function cardOf(name: string, adapter: Adapter, bytes: number): Promise<string> {
  const { dir, settings, baseModel } = adapter;
  const checkpoints = (await listCheckpoints(dir)).map(({ path }) => path).reverse();
  const found = async (file: string) => {
    for (const folder of [dir, ...checkpoints]) {
      const path = join(folder, file);
      if (await isFile(path)) return readJsonFile(path, MAX_BYTES);
    }
    return null;
  };
  const args = await found(ARGS);
  const modules = [settings.targetModules, settings.targetParameters ?? []].flat();
  return modelCard({
    title: name,
    base: baseModel,
    lora: { r: settings.r, alpha: settings.alpha, dropout: settings.dropout, useRslora: settings.useRslora, modules },
    settings: typeof args === "object" && args !== null ? (args as Record<string, unknown>) : {},
    results: resultsOf(await found(STATE), join(dir, STATE)),
    bytes,
  });
}

function resultsOf(state: unknown, path: string): CardResults | null {
  if (state === null) return null;
  const parsed = stateSchema.safeParse(state);
  if (!parsed.success) {
    throw new PipeloraError(
      "PL_ADAPTER_INVALID",
      `${path} is not a trainer state: ${parsed.error.issues[0]?.message}.`,
      {
        hint: "Remove it, and the card says nothing of results.",
      },
    );
  }
  const { global_step: steps, epoch, log_history: logs, best_metric: metric, best_global_step: step } = parsed.data;
  const last = (key: "loss" | "eval_loss") => logs.findLast((entry) => entry[key] !== undefined)?.[key] ?? null;
  const best = typeof metric === "number" && typeof step === "number" ? { metric, step } : null;
  return { steps, epochs: epoch, loss: last("loss"), evalLoss: last("eval_loss"), best };
}
