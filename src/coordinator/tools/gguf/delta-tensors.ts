import type { DeltaNet, LinearRole } from "../../../models/spec.ts";
import type { Architecture } from "./architectures.ts";
import { range, sequence } from "./rows.ts";
import type { Layout, Part } from "./tensors.ts";

/*
 * Gated delta nets in llama.cpp: q, k and v in one tensor, z beside it. Where there are more value heads than key heads, qwen35 has the
 * first value head of every key head, then the second of every one, so that key heads repeat as a whole.
 */

/** Value heads in the file's order, by their number in the checkpoint's; of `width` rows each. */
function valueRows({ keyHeads, valueHeads }: DeltaNet, { tiledValueHeads }: Architecture, width: number): Int32Array {
  const each = valueHeads / keyHeads;
  const heads = Array.from({ length: valueHeads }, (_, head) =>
    tiledValueHeads ? (head % keyHeads) * each + Math.floor(head / keyHeads) : head,
  );
  return sequence(heads.map((head) => range(head * width, width)));
}

const inOrder = (rows: Int32Array): Int32Array | null => (rows.every((row, i) => row === i) ? null : rows);
const behind = (rows: Int32Array, first: number) => rows.map((row) => row + first);

/** Where the rows of a delta net's linear go; null: no rule of its own. */
export function deltaOrder(delta: DeltaNet, architecture: Architecture, role: LinearRole): Part[] | null {
  const { keyHeads, valueHeads, keyDim, valueDim } = delta;
  const keys = keyHeads * keyDim;
  const values = valueRows(delta, architecture, valueDim);
  const numbers = valueRows(delta, architecture, 1);
  switch (role) {
    case "delta_qkv":
      return [{ name: "attn_qkv", rows: inOrder(sequence([range(0, 2 * keys), behind(values, 2 * keys)])) }];
    case "delta_z":
      return [{ name: "attn_gate", rows: inOrder(values) }];
    case "delta_b":
      return [{ name: "ssm_beta", rows: inOrder(numbers) }];
    case "delta_a":
      return [{ name: "ssm_alpha", rows: inOrder(numbers) }];
    case "o":
      return [{ name: "ssm_out", rows: null, columns: inOrder(values) }];
    case "delta_ba":
      return [{ name: "ssm_ba", rows: null }];
    case "delta_qkvz": {
      // A key head each: q, k, its value heads, their z.
      const own = (valueHeads / keyHeads) * valueDim;
      const group = 2 * (keyDim + own);
      const part = (first: number, width: number) =>
        sequence(Array.from({ length: keyHeads }, (_, head) => range(head * group + first, width)));
      return [
        {
          name: "attn_qkv",
          rows: sequence([part(0, keyDim), part(keyDim, keyDim), part(2 * keyDim, own)]),
        },
        { name: "attn_gate", rows: part(2 * keyDim + own, own) },
      ];
    }
    default:
      return null;
  }
}

/** What a delta net has beside linears. */
export function deltaTensors(delta: DeltaNet, architecture: Architecture, at: (name: string) => string): Layout[] {
  const { keyHeads, valueHeads, keyDim, valueDim, taps } = delta;
  const keys = keyHeads * keyDim;
  const numbers = inOrder(valueRows(delta, architecture, 1));
  const channels = inOrder(sequence([range(0, 2 * keys), behind(valueRows(delta, architecture, valueDim), 2 * keys)]));
  const vector = (name: string, source: string, columns: Int32Array | null): Layout => ({
    name: at(name),
    shape: [valueHeads],
    pieces: [{ source, rows: null, columns }],
    exact: true,
  });
  return [
    { ...vector("ssm_a", delta.aLog, numbers), value: (value) => -Math.exp(value) },
    vector("ssm_dt.bias", delta.dtBias, numbers),
    {
      name: at("ssm_conv1d.weight"),
      shape: [2 * keys + valueHeads * valueDim, taps],
      pieces: [{ source: delta.conv, rows: channels, columns: null }],
      exact: true,
    },
    {
      name: at("ssm_norm.weight"),
      shape: [valueDim],
      pieces: [{ source: delta.norm, rows: null, columns: null }],
      exact: true,
    },
  ];
}
