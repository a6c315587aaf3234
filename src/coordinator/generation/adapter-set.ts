import { basename } from "node:path";
import { PipeloraError } from "../../common/errors.ts";
import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import { type Adapter, openAdapter } from "../../formats/adapter.ts";
import { pairMatrices, pairNames } from "../../models/kinds/lora.ts";
import { matrixElements } from "../../models/kinds/named-matrix.ts";
import type { LoraTarget, ResolvedLora } from "../../models/lora-targets.ts";
import type { MatrixValues } from "../cluster/pipeline.ts";
import { pairReader, refuseOtherKinds } from "../planning/adapter-pairs.ts";
import { adapterTargets, type ModelSetup } from "../planning/model-setup.ts";
import { locateAdapter } from "../planning/named-models.ts";

/** Several adapters over one base, by name, each padded to pairs that all have in common. */
export interface AdapterSet {
  /** The pairs that hold any of them: all their modules, each with the largest rank. */
  readonly lora: ResolvedLora;
  readonly names: readonly string[];
  /** Values of each adapter, in the order of the names; computed on demand. */
  values(index: number): Promise<MatrixValues[]>;
}

interface Member {
  readonly name: string;
  readonly adapter: Adapter;
  readonly lora: ResolvedLora;
}

/**
 * Reads NAME=DIR,NAME=DIR; a folder alone is named by its last part. null: no adapters. Errors: PL_ADAPTER_INVALID; PL_CONFIG_INVALID for a
 * name that is given twice or is the base's.
 */
export async function openAdapterSet(
  { adapter: given, hub }: Pick<Config, "adapter" | "hub">,
  { spec }: ModelSetup,
  base: string,
  log: Logger,
): Promise<AdapterSet | null> {
  if (given === null) return null;
  const members: Member[] = [];
  for (const entry of given.split(",")) {
    const [, name = basename(entry), source = entry] = /^([^=/]+)=(.+)$/.exec(entry.trim()) ?? [];
    if (name === base || members.some((member) => member.name === name)) {
      throw new PipeloraError("PL_CONFIG_INVALID", `--adapter: two models would be called ${name}`, {
        hint: "Give each adapter a name of its own: --adapter NAME=DIR, and the base one with --served-model-name.",
      });
    }
    const adapter = await openAdapter(await locateAdapter(source, hub, log));
    for (const warning of adapter.warnings) log.warn(`${name}: ${warning}`);
    const lora = adapterTargets(spec, adapter);
    refuseOtherKinds(lora, "served adapters are");
    members.push({ name, adapter, lora });
  }
  const targets = commonTargets(members);
  const matrices = targets.flatMap(pairMatrices);
  return {
    lora: {
      ...members[0]!.lora,
      targets,
      matrices,
      trainable: matrixElements(matrices),
    },
    names: members.map(({ name }) => name),
    values: (index) => fittedValues(members[index]!, targets),
  };
}

/** Every module of any member, with its largest rank; the scale is the members' own where they agree, else 1. */
function commonTargets(members: readonly Member[]): LoraTarget[] {
  const common = new Map<string, LoraTarget>();
  for (const { name: member, lora } of members) {
    for (const target of lora.targets) {
      const known = common.get(target.name);
      if (known === undefined) {
        common.set(target.name, { ...target, dropout: 0 });
        continue;
      }
      if (known.r !== target.r && (known.stack ?? target.stack) !== undefined) {
        throw new PipeloraError(
          "PL_ADAPTER_INVALID",
          `${member}: pairs of all experts of ${target.name} have rank ${target.r}, another adapter's ${known.r}`,
          {
            hint: "Serve adapters of experts together only where they have one rank.",
          },
        );
      }
      const scale = known.scale === target.scale ? known.scale : 1;
      common.set(target.name, { ...known, r: Math.max(known.r, target.r), scale });
    }
  }
  return [...common.values()].sort((a, b) => a.layer - b.layer).map((target, moduleId) => ({ ...target, moduleId }));
}

/** Rows of A and columns of B beyond the adapter's rank are 0; a scale that is not the common one goes into B. */
async function fittedValues({ adapter, lora }: Member, common: readonly LoraTarget[]): Promise<MatrixValues[]> {
  const pair = pairReader(adapter, lora);
  const values: MatrixValues[] = [];
  for (const target of lora.targets) {
    const { r, scale } = common.find(({ name }) => name === target.name)!;
    const { a, b } = await pair(target);
    const wideA = new Float32Array(r * target.in);
    wideA.set(a);
    const wideB = new Float32Array(target.out * r);
    const factor = target.scale / scale;
    for (let row = 0; row < target.out; row++) {
      for (let column = 0; column < target.r; column++) wideB[row * r + column] = b[row * target.r + column]! * factor;
    }
    const names = pairNames(target.name, target.role);
    values.push({ name: names.a, part: "weight", values: wideA });
    values.push({ name: names.b, part: "weight", values: wideB });
  }
  return values;
}
