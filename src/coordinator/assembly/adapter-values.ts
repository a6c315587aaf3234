import { adapterPairs } from "../../formats/adapter.ts";
import type { LoraValues } from "../cluster/pipeline.ts";
import type { ModelSetup } from "../planning/model-setup.ts";

/** The values of the adapter that a run starts from; null without one. */
export async function adapterValues({ adapter, lora }: ModelSetup): Promise<LoraValues[] | null> {
  if (adapter === null) return null;
  const pair = adapterPairs(adapter, lora!.targets);
  const values: LoraValues[] = [];
  for (const target of lora!.targets) {
    const { a, b } = await pair(target);
    values.push({ module: target.name, matrix: "A", part: "weight", values: a });
    values.push({ module: target.name, matrix: "B", part: "weight", values: b });
  }
  return values;
}
