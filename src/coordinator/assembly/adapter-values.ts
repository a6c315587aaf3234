import { adapterMatrices } from "../../formats/adapter.ts";
import type { MatrixValues } from "../cluster/pipeline.ts";
import type { ModelSetup } from "../planning/model-setup.ts";

/** First values of the adapter that a run starts from; null: it starts from new ones. */
export async function adapterValues({ adapter, lora }: ModelSetup): Promise<MatrixValues[] | null> {
  if (adapter === null) return null;
  const read = adapterMatrices(adapter, lora!.matrices);
  const values: MatrixValues[] = [];
  for (const { name } of lora!.matrices) values.push({ name, part: "weight", values: await read(name) });
  return values;
}
