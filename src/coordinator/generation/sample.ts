import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import { type RowTemplate, rowTemplate } from "../../data/templates.ts";
import { loadTokenizer } from "../../formats/tokenizer/load.ts";
import type { Tokenizer } from "../../formats/tokenizer/tokenizer.ts";
import { formatPlan } from "../../plan/format-plan.ts";
import { adapterValues } from "../assembly/adapter-values.ts";
import type { CalibrationSettings } from "../assembly/calibration.ts";
import { loadShards } from "../assembly/load-shards.ts";
import { planMembers } from "../assembly/plan-members.ts";
import { type ClusterSettings, openCluster } from "../cluster/open-cluster.ts";
import { type ModelSettings, setUpModel } from "../planning/model-setup.ts";
import type { PlanSettings } from "../planning/planning.ts";
import { dateOf } from "../planning/row-templates.ts";
import { generationWorkload } from "../planning/workload.ts";
import { Conversation, type ReplySettings } from "./conversation.ts";

export type SampleSettings = ModelSettings &
  ClusterSettings &
  PlanSettings &
  CalibrationSettings &
  ReplySettings &
  Pick<Config, "template" | "system" | "template_date" | "raw">;

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
  config: SampleSettings,
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
  template?.requireChat();
  if (template !== null && template.remark !== null) log.warn(template.remark);
  const values = await adapterValues(setup);
  const cluster = await openCluster(config, log);
  try {
    const workload = generationWorkload(Math.min(options.tokens, setup.spec.maxPositions));
    const planned = await planMembers(await cluster.form(), setup, workload, config);
    const names = setup.spec.layers.map(({ name }) => name);
    log.debug(formatPlan(planned.plan, names, planned.links));
    for (const warning of planned.plan.warnings) log.warn(warning);
    const how = { initialise: false, failure: cluster.failure };
    const { pipeline } = await loadShards(planned, setup, config, how);
    if (values !== null) await pipeline.importMatrices(values);
    return await use({
      conversation: new Conversation(pipeline, config, { spec: setup.spec, tokenizer, template }),
      tokenizer,
      template,
    });
  } finally {
    await cluster.close(false);
  }
}
