import { changesBase, type LoraSettings } from "../../../common/lora-settings.ts";
import type { NamedMatrix } from "../../../models/kinds/named-matrix.ts";
import type { ResolvedLora } from "../../../models/lora-targets.ts";
import type { MatrixValues } from "../../cluster/pipeline.ts";

/**
 * How an adapter is saved. If its first values were subtracted from the base (PiSSA, OLoRA), it is saved as an adapter of twice the rank for the
 * original base, as peft converts it: W + s (B A - B0 A0) = W + s [B, -B0] [A; A0]. So it is a plain adapter for every reader, and it contains
 * the first values that a resumed run needs.
 */
export interface AdapterForm {
  readonly settings: LoraSettings;
  readonly matrices: readonly Pick<NamedMatrix, "name" | "shape">[];
  /** The matrix in the file, from the run's. */
  readonly join: (name: string, weights: Weights) => Float32Array;
  /** The run's matrix, and its first values if the file contains them, from the matrix in the file. */
  readonly split: (name: string, values: Float32Array) => MatrixValues[];
}

export interface Weights {
  readonly weight: ReadonlyMap<string, Float32Array>;
  readonly initial: ReadonlyMap<string, Float32Array>;
}

export function weightsByName(values: readonly MatrixValues[]): Weights {
  const of = (wanted: string) =>
    new Map(values.filter(({ part }) => part === wanted).map(({ name, values: own }) => [name, own]));
  return { weight: of("weight"), initial: of("initial") };
}

export function adapterForm({ settings, matrices, targets }: ResolvedLora): AdapterForm {
  const { initLoraWeights: init } = settings;
  if (!changesBase(init)) {
    return {
      // LoftQ does not change the base.
      settings: init === "loftq" ? { ...settings, initLoraWeights: true } : settings,
      matrices,
      join: (name, { weight }) => weight.get(name)!,
      split: (name, values) => [{ name, part: "weight", values }],
    };
  }
  const ranks: ReadonlyMap<string, number> = new Map(
    targets.flatMap(({ name, r }) => [[`${name}.lora_A.weight`, r] as const, [`${name}.lora_B.weight`, r] as const]),
  );
  const isB = (name: string) => name.endsWith(".lora_B.weight");
  return {
    settings: doubled(settings),
    matrices: matrices.map(({ name, shape }) => {
      if (!ranks.has(name)) return { name, shape };
      return { name, shape: isB(name) ? [shape[0]!, 2 * shape[1]!] : [2 * shape[0]!, shape[1]!] };
    }),
    join: (name, { weight, initial }) => {
      const [now, then, r] = [weight.get(name)!, initial.get(name), ranks.get(name)];
      if (r === undefined || then === undefined) return now;
      const both = new Float32Array(now.length + then.length);
      if (!isB(name)) {
        both.set(now);
        both.set(then, now.length);
        return both;
      }
      for (let row = 0; row < now.length / r; row++) {
        for (let k = 0; k < r; k++) {
          both[2 * r * row + k] = now[r * row + k]!;
          both[2 * r * row + r + k] = -then[r * row + k]!;
        }
      }
      return both;
    },
    split: (name, values) => {
      const r = ranks.get(name);
      if (r === undefined) return [{ name, part: "weight", values }];
      const half = values.length / 2;
      const parts = [new Float32Array(half), new Float32Array(half)] as const;
      if (isB(name)) {
        for (let row = 0; row < half / r; row++) {
          for (let k = 0; k < r; k++) {
            parts[0][r * row + k] = values[2 * r * row + k]!;
            parts[1][r * row + k] = -values[2 * r * row + r + k]!;
          }
        }
      } else {
        parts[0].set(values.subarray(0, half));
        parts[1].set(values.subarray(half));
      }
      return [
        { name, part: "weight", values: parts[0] },
        { name, part: "initial", values: parts[1] },
      ];
    },
  };
}

/** The settings with twice the ranks and the same scales. */
function doubled(settings: LoraSettings): LoraSettings {
  const twice = (pattern: Readonly<Record<string, number>>) =>
    Object.fromEntries(Object.entries(pattern).map(([key, value]) => [key, 2 * value]));
  return {
    ...settings,
    r: 2 * settings.r,
    alpha: settings.alpha * (settings.useRslora ? Math.SQRT2 : 2),
    rankPattern: twice(settings.rankPattern),
    alphaPattern: twice(settings.alphaPattern),
    initLoraWeights: true,
  };
}
