import { PipeloraError } from "../../common/errors.ts";
import { type Adapter, adapterMatrices } from "../../formats/adapter.ts";
import type { PairValues } from "../../formats/lora-init.ts";
import { pairNames } from "../../models/kinds/lora.ts";
import type { LoraTarget, ResolvedLora } from "../../models/lora-targets.ts";

/** Reads an adapter's values pair by pair. Error: PL_ADAPTER_INVALID where they do not fit this model. */
export function pairReader(
  adapter: Adapter,
  { matrices }: Pick<ResolvedLora, "matrices">,
): (target: Pick<LoraTarget, "name" | "role">) => Promise<PairValues> {
  const read = adapterMatrices(adapter, matrices);
  return async ({ name, role }) => {
    const { a, b } = pairNames(name, role);
    return { a: await read(a), b: await read(b) };
  };
}

/**
 * For callers that support pairs of linear layers only. `who`: the subject of the error's sentence, as "served adapters are". Error:
 * PL_ADAPTER_INVALID, naming the first other matrix.
 */
export function refuseOtherKinds({ matrices }: Pick<ResolvedLora, "matrices">, who: string): void {
  const other = matrices.find(({ name }) => !/\.lora_[AB]\.weight$/.test(name));
  if (other === undefined) return;
  throw new PipeloraError(
    "PL_ADAPTER_INVALID",
    `the adapter trains ${other.name}: ${who} pairs of linear layers alone.`,
    {
      hint: "Merge the adapter into its base (`coordinator merge`), and use that.",
    },
  );
}
