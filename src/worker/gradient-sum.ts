import { bytesOf, float32Of } from "../common/bytes.ts";
import type { Engine } from "../engine/index.ts";
import { gradientSumKey } from "../links/link.ts";
import type { RankLinks } from "./links.ts";
import { fromHost } from "./tensors.ts";

export interface ReplicaGroup {
  /** Ranks that hold the same segments, by replica. */
  readonly ranks: readonly number[];
  /** This rank's position among them. */
  readonly position: number;
}

/**
 * Replaces every replica's LoRA gradients by their sum over the replicas, added in the replicas' order, so that all of them
 * hold the same bits. Each rank sums one share of the values and hands it to the others: 2 (R − 1) / R of the gradients' bytes
 * are sent by each, as by a ring. Returns the bytes sent.
 */
export async function sumGradients(
  engine: Engine,
  links: RankLinks,
  { ranks, position }: ReplicaGroup,
  name: string,
): Promise<number> {
  const values = await engine.gradients();
  const bounds = ranks.map((_, share) => Math.floor((share * values.length) / ranks.length));
  const shareOf = (array: Float32Array, share: number) =>
    array.subarray(bounds[share]!, bounds[share + 1] ?? array.length);
  const others = ranks.map((rank, share) => ({ rank, share })).filter(({ share }) => share !== position);
  let sentBytes = 0;
  const send = (rank: number, kind: "part" | "sum", share: Float32Array) => {
    sentBytes += share.byteLength;
    const tensor = fromHost(bytesOf(share), [share.length], "float32");
    return links.sendWhole(rank, gradientSumKey(name, kind, position), tensor);
  };
  const receive = async (rank: number, kind: "part" | "sum", from: number) =>
    float32Of(await links.receiveBytes(rank, gradientSumKey(name, kind, from)));

  const partsSent = others.map(({ rank, share }) => send(rank, "part", shareOf(values, share)));
  const parts = await Promise.all(
    ranks.map((rank, from) => (from === position ? shareOf(values, position) : receive(rank, "part", from))),
  );
  // Not over `values`: parts of it may still be on their way out.
  const sums = new Float32Array(values.length);
  const own = shareOf(sums, position);
  for (const part of parts) addInto(own, part);

  const sumsSent = others.map(({ rank }) => send(rank, "sum", own));
  await Promise.all(others.map(async ({ rank, share }) => shareOf(sums, share).set(await receive(rank, "sum", share))));
  await Promise.all([...partsSent, ...sumsSent]);
  await engine.setGradients(sums);
  return sentBytes;
}

function addInto(total: Float32Array, part: Float32Array): void {
  for (let i = 0; i < total.length; i++) total[i]! += part[i]!;
}
