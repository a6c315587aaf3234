import { bytesOf } from "../../common/bytes.ts";
import type { Engine } from "../../engine/index.ts";
import type { MatrixTensor } from "../../rpc/generated/pipelora/v1/MatrixTensor.ts";
import { STATE_PARTS } from "../../rpc/state-parts.ts";

const MESSAGE_BYTES = 4 << 20;

export type Tell = (adapter: number, tensors: readonly MatrixTensor[]) => void;

/**
 * Sends copies of an adapter's matrices, a few at a time. The copies are queued on the engine before this returns, after everything queued so
 * far. Resolves when all are sent.
 */
export async function tellState(
  engine: Engine,
  { adapter, names }: { readonly adapter: number; readonly names: readonly string[] },
  tell: Tell,
): Promise<void> {
  const queued = names.flatMap((name) =>
    STATE_PARTS.map((part) => ({ name, part, values: engine.getMatrix(name, part, adapter) })),
  );
  // Awaited one after another. Until then a failure must not count as unhandled.
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
