import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import { type RowTemplate, rowTemplate } from "../../data/templates.ts";
import { loadTokenizer } from "../../formats/tokenizer/load.ts";
import type { Tokenizer } from "../../formats/tokenizer/tokenizer.ts";
import { formatPlan } from "../../plan/format-plan.ts";
import { setUpModel } from "../planning/model-setup.ts";
import { dateOf } from "../planning/training-data.ts";
import { generationWorkload } from "../planning/workload.ts";
import { Conversation } from "../tools/conversation.ts";
import { assemble, openCluster } from "./assemble.ts";
import { adapterValues } from "./run-files.ts";

export interface SamplingSession {
  readonly conversation: Conversation;
  /** null for a model folder without one, which can still continue ids. */
  readonly tokenizer: Tokenizer | null;
  readonly template: RowTemplate | null;
}

/**
 * Loads the model over the workers and calls `use`. `tokens`: most of prompt and reply together. `needsText`: a tokenizer
 * must be there.
 */
export async function withModel<T>(
  config: Config,
  log: Logger,
  options: { readonly tokens: number; readonly needsText: boolean },
  use: (session: SamplingSession) => Promise<T>,
): Promise<T> {
  const setup = await setUpModel(config, log, { weights: true, lora: false });
  for (const warning of setup.warnings) log.warn(warning);
  const tokenizer = await loadTokenizer(setup.dir).catch((error: unknown) => {
    if (options.needsText) throw error;
    return null;
  });
  const template =
    tokenizer === null || !options.needsText || config.raw
      ? null
      : rowTemplate(tokenizer, { name: config.template, system: config.system, ...dateOf(config) });
  const values = await adapterValues(setup);
  const cluster = await openCluster(config, log);
  try {
    const workload = generationWorkload(Math.min(options.tokens, setup.spec.maxPositions));
    const { pipeline } = await assemble(cluster, config, setup, workload, false, (plan, links) => {
      log.debug(
        formatPlan(
          plan,
          setup.spec.layers.map(({ name }) => name),
          links,
        ),
      );
      for (const warning of plan.warnings) log.warn(warning);
    });
    if (values !== null) await pipeline.importLora(values);
    return await use({
      conversation: new Conversation(pipeline, config, setup.spec, tokenizer, template),
      tokenizer,
      template,
    });
  } finally {
    await cluster.close(false);
  }
}
