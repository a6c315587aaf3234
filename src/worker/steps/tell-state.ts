import { bytesOf } from "../../common/bytes.ts";
import type { Engine } from "../../engine/index.ts";
import type { MatrixTensor } from "../../rpc/generated/pipelora/v1/MatrixTensor.ts";
import { STATE_PARTS } from "../../rpc/state-parts.ts";

const MESSAGE_BYTES = 4 << 20;

export type Tell = (adapter: number, tensors: readonly MatrixTensor[]) => void;

/**
 * Queues copies of an adapter's matrices on the engine, behind what is queued so far, before this returns; tells them a few at a time as they
 * come. Resolves when all are told.
 */
export async function tellState(
  engine: Engine,
  { adapter, names }: { readonly adapter: number; readonly names: readonly string[] },
  tell: Tell,
): Promise<void> {
  const queued = names.flatMap((name) =>
    STATE_PARTS.map((part) => ({ name, part, values: engine.getMatrix(name, part, adapter) })),
  );
  // Awaited in their turn; one before may fail first.
  for (const { values } of queued) values.catch(() => {});
  let tensors: MatrixTensor[] = [];
  let bytes = 0;
  for (const { name, part, values } of queued) {
    const own = bytesOf(await values);
    tensors.push({ name, part, values: own });
    bytes += own.length;
    if (bytes < MESSAGE_BYTES) continue;
    tell(adapter, tensors);
    tensors = [];
    bytes = 0;
  }
  if (tensors.length > 0) tell(adapter, tensors);
}
