/**
 * Every row of the GPU table at Qwen-7B's shape on this machine's GPU, one JSON line a row; `args`: [--peer] [--rows NAME,…]
 * [--program FILE]. Throws an error of the catalogue (a `code`) where nothing can be run, or, at the end, if a row failed.
 */
export function benchGpu(print: (row: object) => void, args: readonly string[]): Promise<void>;
/** Names that --rows takes, in order, with what each is held against. */
export const GPU_ROWS: readonly {
  readonly row: string;
  readonly name: string;
  readonly target: { readonly tokensPerSecond: number; readonly GiB: number | null };
  readonly hf: { readonly tokensPerSecond: number; readonly GiB: number | null } | null;
  readonly best: { readonly name: string; readonly tokensPerSecond: number; readonly GiB: number } | null;
}[];
