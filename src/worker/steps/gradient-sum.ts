import { bytesOf, float32Of } from "../../common/bytes.ts";
import type { DevicePlace, Engine, Transfer } from "../../engine/index.ts";
import { gradientSumKey } from "../../links/link.ts";
import type { NcclGroup } from "../../links/nccl-group.ts";
import type { RankLinks } from "../links.ts";
import { fromHost } from "../tensors.ts";

const FLOAT = 4;

export interface ReplicaGroup {
  /** The ranks that hold the same segments, by replica. */
  readonly ranks: readonly number[];
  /** This rank's position among them. */
  readonly position: number;
}

/**
 * Divides `count` values among ranks: where each share begins, and its size. NCCL and links between pairs use the same shares and the same
 * order, so both give the same bits.
 */
function sharesOf(count: number, ranks: number): { first: number; size: number }[] {
  const first = (share: number) => Math.floor((share * count) / ranks);
  return Array.from({ length: ranks }, (_, share) => ({
    first: first(share),
    size: first(share + 1) - first(share),
  }));
}

/**
 * Replaces an adapter's gradients on every replica by their sum. Replicas are added in order, so all hold the same bits. Each of R ranks adds
 * up one share of the values and sends it to the others: it sends 2 (R − 1) / R of the gradients' bytes, as in a ring. Returns the bytes sent.
 */
export async function sumGradients(
  engine: Engine,
  links: RankLinks,
  { ranks, position }: ReplicaGroup,
  { name, adapter }: { readonly name: string; readonly adapter: number },
): Promise<number> {
  const group = links.replicaGroup;
  if (group !== null) return sumOnDevice(engine, group, { ranks, position }, adapter);
  const values = await engine.gradients(adapter);
  const shares = sharesOf(values.length, ranks.length);
  const shareOf = (array: Float32Array, share: number) => {
    const { first, size } = shares[share]!;
    return array.subarray(first, first + size);
  };
  const others = ranks.map((rank, share) => ({ rank, share })).filter(({ share }) => share !== position);
  let sentBytes = 0;
  const send = (rank: number, kind: "part" | "sum", share: Float32Array) => {
    sentBytes += share.byteLength;
    const tensor = fromHost(bytesOf(share), [share.length], "float32");
    const sent = links.sendWhole(rank, gradientSumKey(name, kind, position), tensor);
    // Awaited at the end. If receiving a peer's share fails first, that failure is reported.
    sent.catch(() => {});
    return sent;
  };
  const receive = async (rank: number, kind: "part" | "sum", from: number) =>
    float32Of(await links.receiveBytes(rank, gradientSumKey(name, kind, from)));

  const partsSent = others.map(({ rank, share }) => send(rank, "part", shareOf(values, share)));
  const parts = await Promise.all(
    ranks.map((rank, from) => (from === position ? shareOf(values, position) : receive(rank, "part", from))),
  );
  // A new array, because parts of `values` may still be being sent.
  const sums = new Float32Array(values.length);
  const own = shareOf(sums, position);
  for (const part of parts) addInto(own, part);

  const sumsSent = others.map(({ rank }) => send(rank, "sum", own));
  await Promise.all(others.map(async ({ rank, share }) => shareOf(sums, share).set(await receive(rank, "sum", share))));
  await Promise.all([...partsSent, ...sumsSent]);
  await engine.setGradients(sums, adapter);
  return sentBytes;
}

/** The same in device memory, with the replicas' NCCL communicator. */
async function sumOnDevice(
  engine: Engine,
  group: NcclGroup,
  { ranks, position }: ReplicaGroup,
  adapter: number,
): Promise<number> {
  const count = await engine.gradientCount(adapter);
  const shares = sharesOf(count, ranks.length);
  const own = shares[position]!.size;
  const [values, parts, sum] = [count, own * ranks.length, own].map((floats) => group.place(FLOAT * floats)) as [
    DevicePlace,
    DevicePlace,
    DevicePlace,
  ];
  const transfer = (
    sends: boolean,
    peer: number,
    place: DevicePlace,
    part: { first: number; size: number },
  ): Transfer => {
    return { sends, peer, place, offset: FLOAT * part.first, bytes: FLOAT * part.size };
  };
  try {
    await engine.gradientsTo(values, adapter);
    await group.exchange(
      shares.flatMap(({ first, size }, peer) => [
        transfer(true, peer, values, { first, size }),
        transfer(false, peer, parts, { first: peer * own, size: own }),
      ]),
    );
    await engine.sumParts(parts, ranks.length, own, sum);
    await group.exchange(
      shares.flatMap(({ first, size }, peer) => [
        transfer(true, peer, sum, { first: 0, size: own }),
        transfer(false, peer, values, { first, size }),
      ]),
    );
    await engine.setGradientsFrom(values, adapter);
    return FLOAT * (count - own + own * (ranks.length - 1));
  } finally {
    for (const place of [values, parts, sum]) place.free();
  }
}

function addInto(total: Float32Array, part: Float32Array): void {
  for (let i = 0; i < total.length; i++) total[i]! += part[i]!;
}
