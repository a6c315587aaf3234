import { bytesOf } from "../../common/bytes.ts";
import { PipeloraError } from "../../common/errors.ts";
import type { Engine, NativeAddon } from "../../engine/index.ts";
import type { InputFit__Output } from "../../rpc/generated/pipelora/v1/InputFit.ts";
import type { InputStudy__Output } from "../../rpc/generated/pipelora/v1/InputStudy.ts";
import type { MatrixTensor } from "../../rpc/generated/pipelora/v1/MatrixTensor.ts";
import { IncrementalPca, similarities } from "./incremental-pca.ts";

/** The inputs of this rank's modules, over the batches of an EVA initialisation. */
export class RankInputs {
  readonly #engine: Engine;
  readonly #addon: NativeAddon;
  readonly #threads: number;
  readonly #found = new Map<string, IncrementalPca>();

  constructor(engine: Engine, addon: NativeAddon, threads: number) {
    this.#engine = engine;
    this.#addon = addon;
    this.#threads = threads;
  }

  /** Runs a batch's pass, and decomposes the inputs of the study's modules on this rank. A module with too few rows is left out. */
  async over<T>(study: InputStudy__Output, pass: () => Promise<T>): Promise<{ made: T; fits: InputFit__Output[] }> {
    const wanted = new Map(study.inputs.map(({ module, components }) => [module, components]));
    const here = await this.#engine.watchInputs([...wanted.keys()]);
    try {
      const made = await pass();
      const fits: InputFit__Output[] = [];
      for (const module of here) {
        const fit = await this.#fit(module, wanted.get(module)!, await this.#engine.takeInputs(module), study.counted);
        if (fit !== null) fits.push(fit);
      }
      return { made, fits };
    } finally {
      await this.#engine.watchInputs([]);
    }
  }

  /** The components so far of each module, [count, in], and their singular values. */
  read(modules: readonly string[]): MatrixTensor[] {
    return modules.flatMap((name) => {
      const found = this.#found.get(name);
      if (found === undefined) return [];
      return [
        { name, part: "components", values: bytesOf(found.components) },
        { name, part: "singular_values", values: bytesOf(found.singularValues) },
      ];
    });
  }

  async #fit(module: string, count: number, rows: Float32Array, counted: Uint8Array): Promise<InputFit__Output | null> {
    if (rows.length === 0 || rows.length % counted.length !== 0) {
      throw new PipeloraError(
        "PL_PROTOCOL_MISMATCH",
        `${module} took ${rows.length} values of ${counted.length} tokens`,
      );
    }
    const columns = rows.length / counted.length;
    const left = counted.reduce((sum, one) => sum + one, 0);
    if (left < count) return null;
    const own = new Float32Array(left * columns);
    let next = 0;
    for (const [token, counts] of counted.entries()) {
      if (counts !== 1) continue;
      own.set(rows.subarray(token * columns, (token + 1) * columns), next);
      next += columns;
    }
    const pca = this.#found.get(module) ?? new IncrementalPca(this.#addon, { columns, count, threads: this.#threads });
    this.#found.set(module, pca);
    const before = pca.components;
    await pca.add(own);
    const similar = before.length === 0 ? new Float64Array(0) : similarities(pca.components, before, count);
    return { module, explained: Buffer.from(bytesOf(pca.explained())), similar: Buffer.from(bytesOf(similar)) };
  }
}
