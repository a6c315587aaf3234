const FLOAT32 = 4;
/** Bytes of float32 logits at a time: the head goes through its label tokens in chunks of about this size. */
const LOGITS_BYTES = 2 ** 28;
const CHUNK_TILE = 128;

/** Rows of a chunk of logits (native/model/head.cpp): as many as fit, rounded up to fill the tiles of a product. */
export function logitRows(vocab: number): number {
  const fitting = Math.max(1, Math.floor(LOGITS_BYTES / (FLOAT32 * vocab)));
  return fitting < CHUNK_TILE ? fitting : Math.ceil(fitting / CHUNK_TILE) * CHUNK_TILE;
}
