import { createHash } from "node:crypto";
import { open, readFile, stat } from "node:fs/promises";
import { basename, join } from "node:path";
import { PipeloraError } from "../common/errors.ts";
import type { Checkpoint } from "./checkpoint.ts";

/** Identifies a checkpoint by its configuration and its tensors' names, shapes and dtypes, which all nodes must share. */
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

/** The tensors that are sampled, and the bytes of each sample: enough to tell two checkpoints of one shape apart without reading either. */
const SAMPLED_TENSORS = 64;
const SAMPLE_BYTES = 4096;

/**
 * Equal for two copies of a checkpoint and for no other: configuration, file sizes, all headers, and the first bytes of tensors spread over
 * the model.
 */
export async function checkpointDigest(checkpoint: Checkpoint): Promise<string> {
  const hash = createHash("sha256").update(await readFile(join(checkpoint.dir, "config.json")));
  const names = [...checkpoint.names].sort();
  const sizes = new Map<string, number>();
  for (const name of names) {
    const { path, dtype, shape, offset } = checkpoint.locate(name);
    if (!sizes.has(path)) sizes.set(path, (await stat(path)).size);
    hash.update(`\n${name} ${dtype} ${shape.join("x")} ${basename(path)} ${sizes.get(path)} ${offset}`);
  }
  const step = Math.max(1, Math.ceil(names.length / SAMPLED_TENSORS));
  for (let index = 0; index < names.length; index += step) {
    const { path, offset, bytes } = checkpoint.locate(names[index]!);
    const file = await open(path, "r");
    try {
      const { buffer, bytesRead } = await file.read(Buffer.alloc(Math.min(bytes, SAMPLE_BYTES)), 0, undefined, offset);
      hash.update(buffer.subarray(0, bytesRead));
    } finally {
      await file.close();
    }
  }
  return hash.digest("hex").slice(0, 16);
}
