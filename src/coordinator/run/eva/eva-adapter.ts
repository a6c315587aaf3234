import { dirname, join } from "node:path";
import { PipeloraError } from "../../../common/errors.ts";
import { isFile } from "../../../common/files.ts";
import type { Logger } from "../../../common/log.ts";
import { inSlices } from "../../../common/slices.ts";
import type { Config } from "../../../config/options.ts";
import { cutMicroBatches, packMicroBatches } from "../../../data/micro-batches.ts";
import { IGNORED } from "../../../data/row-store.ts";
import type { WeightedRow } from "../../../data/steps.ts";
import { ADAPTER_CONFIG_FILE, writeAdapter } from "../../../formats/adapter.ts";
import { pairNames } from "../../../models/kinds/lora.ts";
import { type ResolvedLora, resolveLoraTargets } from "../../../models/lora-targets.ts";
import { loadShards } from "../../assembly/load-shards.ts";
import { planMembers } from "../../assembly/plan-members.ts";
import type { Cluster } from "../../cluster/cluster.ts";
import type { Pipeline } from "../../cluster/pipeline.ts";
import { describeModel, type ModelSetup } from "../../planning/model-setup.ts";
import { readAdaptersData, type TrainingData } from "../../planning/training-data.ts";
import { longestRow, passesWorkload } from "../../planning/workload.ts";
import { namedFolder } from "../checkpoints/resume-point.ts";
import { EvaSearch } from "./eva-search.ts";
import { evaInputs, evaSettings, rankBudget } from "./eva-settings.ts";
import type { SharedInput } from "./rank-distribution.ts";

/** After this many batches, components that still change are an error. */
const MOST_BATCHES = 1000;
/** Tokens of a pass, unless a row is longer. */
const PASS_TOKENS = 2048;

/** Whether the run's first values are made from its rows. */
export function beginsWithEva({
  init_lora_weights: init,
  adapter,
}: Pick<Config, "init_lora_weights" | "adapter">): boolean {
  return init === "eva" && adapter === null;
}

/** The folder of the adapter that EVA makes: in the output folder. */
function evaFolder({ output_dir, resume_from_checkpoint: asked }: Config): string {
  const named = namedFolder(asked);
  return join(named === null ? output_dir! : dirname(named), "eva");
}

/** The adapter with which a resumed run began; null if the run does not resume. Errors: PL_RESUME_INVALID if it is missing. */
export async function resumedEva(config: Config): Promise<string | null> {
  const asked = config.resume_from_checkpoint;
  if (asked === null || asked === false) return null;
  const folder = evaFolder(config);
  if (await isFile(join(folder, ADAPTER_CONFIG_FILE))) return folder;
  if (asked === "auto") return null;
  throw new PipeloraError("PL_RESUME_INVALID", `${folder}, which has the ranks that EVA gave this run, is gone.`, {
    hint: "Put it back beside the checkpoints, or continue with --adapter and the last checkpoint's folder.",
  });
}

/**
 * EVA (Paischer et al. 2024), as in peft's initialize_lora_eva_weights. Batches of training rows, in order and repeated if need be, go through the
 * base alone until the principal components of each layer's inputs no longer change. Ranks go to the layers where components explain most.
 * Writes the adapter to OUTPUT_DIR/eva, from which the run starts, and resolves with that folder. The workers leave afterwards.
 * Errors: PL_CONFIG_INVALID if components keep changing or no batch has enough rows; those of loading and passes.
 */
export async function makeEvaAdapter(config: Config, cluster: Cluster, log: Logger): Promise<string> {
  const model = await describeModel(config, log, { weights: true, lora: true });
  const [data] = await readAdaptersData([{ label: "", config }], model, log);
  const setup = await model.withWeights();
  const lora = setup.lora!;
  const eva = lora.settings.evaConfig!;
  refuseOthers(lora);
  const inputs = evaInputs(setup.spec, lora, eva);
  const members = await cluster.form();
  const batches = evaBatches(data!, eva);
  const tokens = Math.max(PASS_TOKENS, longestRow(data!.train));
  const settings = { ...config, replicas: 1 };
  const base: ModelSetup = { ...setup, lora: null };
  const planned = await planMembers(members, base, { workload: passesWorkload(tokens) }, settings);
  const { pipeline } = await loadShards(planned, base, settings, {
    adapters: [{ lora: null, settings, initialise: false }],
    failure: cluster.failure,
  });
  const search = new EvaSearch(inputs, { budget: rankBudget(lora), tau: eva.tau });
  const seen = await settle(search, inputs, {
    ...{ pipeline, batches, tokens },
    epoch: data!.order.batchesPerEpoch,
  });
  log.info(`EVA: ranks of ${lora.targets.length} layers from ${seen} batches`);
  const folder = evaFolder(config);
  await write(folder, setup, { search, inputs, pipeline });
  await cluster.dissolve();
  return folder;
}

/** Refuses anything trained besides pairs: the adapter that EVA makes could not contain its first values. */
function refuseOthers({ saved, biases, tokens }: ResolvedLora): void {
  const other =
    saved.length > 0
      ? "modules_to_save"
      : biases.length > 0
        ? "bias"
        : tokens === null
          ? null
          : "trainable_token_indices";
  if (other === null) return;
  throw new PipeloraError("PL_CONFIG_INVALID", `init_lora_weights eva does not go with ${other}.`, {
    hint: "Leave one of them out.",
  });
}

interface EvaBatch {
  readonly rows: readonly WeightedRow[];
  /** Whether a token counts, [token]. */
  readonly counted: Uint8Array;
}

/** The batches in the run's order, epoch after epoch without end. */
async function* evaBatches(
  { train, order }: Pick<TrainingData, "train" | "order">,
  { useLabelMask, labelMaskValue }: { readonly useLabelMask: boolean; readonly labelMaskValue: number },
): AsyncGenerator<EvaBatch> {
  for (let step = 1; ; step++) {
    await inSlices(order.prepare(step));
    for (const batch of order.step(step).batches.flat()) {
      const rows = Array.from(batch, (row, rowId): WeightedRow => {
        const { tokens } = train.row(row);
        return { tokens, labels: new Int32Array(tokens.length).fill(IGNORED), weight: 0, weights: null, rowId };
      });
      const labels = Array.from(batch, (row) => train.row(row).labels);
      const counted = labels.flatMap((own) =>
        Array.from(own, (label) => Number(!useLabelMask || label !== labelMaskValue)),
      );
      yield { rows, counted: Uint8Array.from(counted) };
    }
  }
}

interface Passes {
  readonly pipeline: Pipeline;
  readonly batches: AsyncGenerator<EvaBatch>;
  readonly tokens: number;
  /** How many batches an epoch has. */
  readonly epoch: number;
}

/** Runs batches until the search needs no more. Returns how many. */
async function settle(search: EvaSearch, inputs: readonly SharedInput[], passes: Passes): Promise<number> {
  const { pipeline, batches, tokens, epoch } = passes;
  const components = new Map(inputs.map(({ modules, components: count }) => [modules[0]!, count]));
  for (let seen = 0; seen < MOST_BATCHES; seen++) {
    const wanted = search.wanted();
    if (wanted.length === 0) return seen;
    const [few] = search.unheard();
    if (seen >= epoch && few !== undefined) {
      throw new PipeloraError(
        "PL_CONFIG_INVALID",
        `init_lora_weights eva: no batch has as many tokens that count as ${few} needs components, ${components.get(few)}.`,
        {
          hint: "Give larger batches (--per-device-train-batch-size), a smaller rho or lora_r, or use_label_mask false in --eva-config.",
        },
      );
    }
    const { value } = (await batches.next()) as { value: EvaBatch };
    const packed = packMicroBatches(cutMicroBatches(value.rows, { maxTokens: tokens }));
    const study = wanted.map((module) => ({ module, components: components.get(module)! }));
    search.heard(await pipeline.studyInputs(packed, study, value.counted));
  }
  const left = search.wanted();
  throw new PipeloraError(
    "PL_CONFIG_INVALID",
    `init_lora_weights eva: what ${left.length} layers take, ${left[0]} among them, has not settled after ${MOST_BATCHES} batches.`,
    { hint: "Lower tau or rho in --eva-config." },
  );
}

/** Writes the adapter as peft does: A has the components, B is zero. */
async function write(
  folder: string,
  { spec, name, lora }: ModelSetup,
  { search, inputs, pipeline }: { search: EvaSearch; inputs: readonly SharedInput[]; pipeline: Pipeline },
): Promise<void> {
  const { whiten } = lora!.settings.evaConfig!;
  const resolved = resolveLoraTargets(spec, evaSettings(spec, lora!, search.ranks));
  const targets = new Map(resolved.targets.map((target) => [pairNames(target.name, target.role).a, target]));
  const inputOf = new Map(inputs.flatMap(({ modules }) => modules.map((module) => [module, modules[0]!])));
  const found = await pipeline.readInputs(inputs.map(({ modules }) => modules[0]!));
  const { settings, targetModules, matrices } = resolved;
  await writeAdapter(folder, {
    ...{ settings, targetModules, matrices, baseModel: name },
    values: (matrix) => {
      const target = targets.get(matrix);
      const { shape } = matrices.find((one) => one.name === matrix)!;
      if (target === undefined) return new Float32Array(shape[0]! * shape[1]!);
      const { components, singularValues } = found.get(inputOf.get(target.name)!)!;
      const rows = components.slice(0, target.r * target.in);
      return whiten ? rows.map((value, at) => value / Math.sqrt(singularValues[Math.floor(at / target.in)]!)) : rows;
    },
  });
}
