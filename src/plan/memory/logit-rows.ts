const FLOAT32 = 4;
/** Bytes of float32 logits that are alive at a time: the head works through its label tokens in chunks of about this size. */
const LOGITS_BYTES = 2 ** 28;
const CHUNK_TILE = 128;

/** Rows of a chunk of logits (native/model/head.cpp): what fits, and what more fills the tiles of a product. */
export function logitRows(vocab: number): number {
  const fitting = Math.max(1, Math.floor(LOGITS_BYTES / (FLOAT32 * vocab)));
  return fitting < CHUNK_TILE ? fitting : Math.ceil(fitting / CHUNK_TILE) * CHUNK_TILE;
}
