import { PipeloraError } from "../../../common/errors.ts";
import type { Adapter } from "../../../formats/adapter.ts";
import { encodeValues, fitsRows, type RoundedType } from "../../../formats/gguf/tensor-types.ts";
import type { GgufTensor } from "../../../formats/gguf/write.ts";
import type { PairValues } from "../../../formats/lora-init.ts";
import { storedAliases } from "../../../models/experts.ts";
import type { ResolvedLora } from "../../../models/lora-targets.ts";
import type { ModelSpec } from "../../../models/spec.ts";
import { pairReader, refuseOtherKinds } from "../../planning/adapter-pairs.ts";
import { type MergeTarget, mergeTargets } from "../merge-targets.ts";
import type { Architecture } from "./architectures.ts";
import { type Layout, layouts, type Piece } from "./tensors.ts";

/**
 * The tensors of a GGUF LoRA: "<tensor>.lora_a" [r, in] and "<tensor>.lora_b" [out, r] of every adapted tensor, B's rows in the order that
 * the base's have in its file. llama.cpp scales by adapter.lora.alpha / r: where a pair's own scale is another (rank and alpha by pattern,
 * rsLoRA), B is multiplied by the ratio. Error: PL_ADAPTER_INVALID for weights to which llama.cpp adds no adapter.
 */
export function adapterTensors(
  spec: ModelSpec,
  architecture: Architecture,
  { adapter, lora }: { readonly adapter: Adapter; readonly lora: ResolvedLora },
  wanted: RoundedType,
): GgufTensor[] {
  refuseOtherKinds(lora, "llama.cpp's adapters are");
  const targets = mergeTargets(spec, lora.targets, () => false);
  const readPair = pairReader(adapter, lora);
  const aliases = storedAliases(spec);
  const found = (source: string) => targets.get(source) ?? targets.get(aliases.get(source) ?? "");
  const { unadapted = [] } = architecture;
  const used = new Set<MergeTarget>();
  const tensors = layouts(spec, architecture).flatMap((layout): GgufTensor[] => {
    const adapted = layout.pieces.map(({ source }) => found(source));
    if (adapted.every((target) => target === undefined)) return [];
    const first = layout.pieces[0]!;
    const leaf = layout.name.split(".").at(-2)!;
    if (layout.value !== undefined || leaf === "attn_v_b" || leaf === "attn_k_b" || unadapted.includes(leaf)) {
      throw new PipeloraError("PL_ADAPTER_INVALID", `${first.source} is adapted, to which llama.cpp adds no adapter.`, {
        hint: "Export the merged model: leave out --adapter-only.",
      });
    }
    for (const target of adapted) used.add(target!);
    return pairTensors(layout, adapted as MergeTarget[], { readPair, alpha: lora.settings.alpha, wanted });
  });
  const left = [...targets].find(([, target]) => !used.has(target));
  if (left !== undefined) {
    throw new PipeloraError(
      "PL_ADAPTER_INVALID",
      `The adapter changes ${left[0]}, for which a GGUF file has no tensor.`,
      {
        hint: "Export the merged model: leave out --adapter-only.",
      },
    );
  }
  return tensors;
}

interface Reading {
  readonly readPair: ReturnType<typeof pairReader>;
  readonly alpha: number;
  readonly wanted: RoundedType;
}

/** One pair, or of a stack of experts one each, A's and B's end to end. */
function pairTensors(layout: Layout, targets: readonly MergeTarget[], reading: Reading): GgufTensor[] {
  const stacked = layout.pieces.length > 1 ? [layout.pieces.length] : [];
  const { out, in: input } = targets[0]!.parts[0]!;
  const rank = targets[0]!.target.r / (targets[0]!.target.stack?.experts ?? 1);
  const rows = layout.pieces[0]!.rows?.length ?? out;
  const matrix = (
    suffix: string,
    shape: readonly number[],
    values: (pair: PairValues, piece: number) => Float32Array,
  ) => {
    const type = fitsRows(reading.wanted, shape.at(-1)!) ? reading.wanted : "f16";
    return {
      name: `${layout.name}.${suffix}`,
      shape: [...stacked, ...shape],
      type,
      data: async function* () {
        // All experts' matrices are one tensor of the adapter's.
        const read = await reading.readPair(targets[0]!.target);
        for (const [piece, { parts }] of targets.entries())
          yield encodeValues(values(parts[0]!.pair(read), piece), type);
      },
    };
  };
  const ratio = ({ target }: MergeTarget) => target.scale / (reading.alpha / rank);
  return [
    matrix("lora_a", [rank, input], ({ a }, piece) => orderedColumns(layout.pieces[piece]!, a, input)),
    matrix("lora_b", [rows, rank], ({ b }, piece) =>
      orderedRows(layout.pieces[piece]!, b, rank, ratio(targets[piece]!)),
    ),
  ];
}

function orderedColumns({ columns }: Piece, a: Float32Array, width: number): Float32Array {
  if (columns === null) return a;
  return a.map((_, i) => a[i - (i % width) + columns[i % width]!]!);
}

function orderedRows({ rows }: Piece, b: Float32Array, rank: number, ratio: number): Float32Array {
  const count = rows?.length ?? b.length / rank;
  const result = new Float32Array(count * rank);
  for (let row = 0; row < count; row++) {
    const from = (rows?.[row] ?? row) * rank;
    for (let i = 0; i < rank; i++) result[row * rank + i] = b[from + i]! * ratio;
  }
  return result;
}
