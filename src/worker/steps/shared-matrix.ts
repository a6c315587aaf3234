import { bytesOf, float32Of } from "../../common/bytes.ts";
import type { Engine } from "../../engine/index.ts";
import { sharedSumKey } from "../../links/link.ts";
import type { RankLinks } from "../links.ts";
import { fromHost } from "../tensors.ts";

/** A trained matrix that is used in two places of the model: rows of an embedding that is tied to the head. */
export interface SharedMatrix {
  readonly name: string;
  /** The rank that holds the matrix itself; `twinRank` holds its twin. */
  readonly rank: number;
  readonly twin: string;
  readonly twinRank: number;
}

/**
 * Replaces the gradients in both places by their sum. The matrix's own gradient is the first summand, so one rank and two give the same bits.
 * Both places are then clipped and updated alike. Returns the bytes sent.
 */
export async function sumShared(
  engine: Engine,
  links: RankLinks,
  { name, rank, twin, twinRank }: SharedMatrix,
  { self, step, adapter }: { readonly self: number; readonly step: string; readonly adapter: number },
): Promise<number> {
  const read = (of: string) => engine.getMatrix(of, "grad", adapter);
  const write = (of: string, values: Float32Array) => engine.setMatrix(of, "grad", values, adapter);
  const send = async (to: number, kind: "part" | "sum", values: Float32Array) => {
    await links.sendWhole(to, sharedSumKey(step, kind, adapter), fromHost(bytesOf(values), [values.length], "float32"));
    return values.byteLength;
  };
  const receive = async (from: number, kind: "part" | "sum") =>
    float32Of(await links.receiveBytes(from, sharedSumKey(step, kind, adapter)));
  if (self !== rank) {
    const sentBytes = await send(rank, "part", await read(twin));
    await write(twin, await receive(rank, "sum"));
    return sentBytes;
  }
  const own = await read(name);
  const other = twinRank === self ? await read(twin) : await receive(twinRank, "part");
  const sum = own.map((value, at) => value + other[at]!);
  await write(name, sum);
  if (twinRank !== self) return send(twinRank, "sum", sum);
  await write(twin, sum);
  return 0;
}
