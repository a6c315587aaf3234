import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { PipeloraError } from "../common/errors.ts";
import type { Checkpoint } from "./checkpoint.ts";

/** Names a checkpoint by its configuration and its tensors' names, shapes, dtypes: what every node must have alike. */
export async function checkpointFingerprint(checkpoint: Checkpoint): Promise<string> {
  const hash = createHash("sha256").update(await readFile(join(checkpoint.dir, "config.json")));
  for (const name of [...checkpoint.names].sort()) {
    const { dtype, shape } = checkpoint.locate(name);
    hash.update(`\n${name} ${dtype} ${shape.join("x")}`);
  }
  return hash.digest("hex").slice(0, 16);
}

/** Error: PL_CHECKPOINT_INVALID if this node's checkpoint is not the one that the run was planned for. */
export async function checkFingerprint(checkpoint: Checkpoint, expected: string): Promise<void> {
  const found = await checkpointFingerprint(checkpoint);
  if (found === expected) return;
  throw new PipeloraError(
    "PL_CHECKPOINT_INVALID",
    `${checkpoint.dir} holds another checkpoint (${found}) than the coordinator's (${expected})`,
    { hint: "Copy the same checkpoint to every node, or mount one volume on all." },
  );
}
