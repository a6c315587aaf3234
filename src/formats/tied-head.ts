import { PipeloraError } from "../common/errors.ts";
import type { Checkpoint, ExpectedTensors } from "./checkpoint.ts";
import { readTensor, type TensorLocation } from "./safetensors.ts";

/** Rows are compared a piece at a time: two matrices that differ do so in the first. */
const PIECE_BYTES = 16 << 20;

/**
 * Where config.json ties two weights and the checkpoint holds both, they must be equal. transformers 5 keeps both if they differ, older
 * versions drop the second: choosing either silently would change numbers. Error: PL_CHECKPOINT_INVALID.
 */
export async function assertTied({ tied }: Pick<ExpectedTensors, "tied">, checkpoint: Checkpoint): Promise<void> {
  for (const [alias, name] of tied) {
    if (!checkpoint.has(alias) || !checkpoint.has(name)) continue;
    if (await sameTensor(checkpoint.locate(alias), checkpoint.locate(name))) continue;
    throw new PipeloraError(
      "PL_CHECKPOINT_INVALID",
      `${checkpoint.dir}: config.json ties ${alias} to ${name}, but the checkpoint holds two different matrices.`,
      {
        hint: `Set "tie_word_embeddings": false in config.json to use both, as transformers 5 does, or take ${alias} out of the checkpoint.`,
      },
    );
  }
}

async function sameTensor(a: TensorLocation, b: TensorLocation): Promise<boolean> {
  if (a.dtype !== b.dtype || a.bytes !== b.bytes) return false;
  for (let start = 0; start < a.bytes; start += PIECE_BYTES) {
    const bytes = Math.min(PIECE_BYTES, a.bytes - start);
    const [left, right] = await Promise.all(
      [a, b].map((place) => readTensor({ ...place, offset: place.offset + start, bytes })),
    );
    if (Buffer.compare(left!, right!) !== 0) return false;
  }
  return true;
}
