import { tokenRank } from "../../models/experts.ts";
import type { LoraTarget } from "../../models/lora-targets.ts";
import type { BlockLayer, ModelSpec } from "../../models/spec.ts";
import { lowestTrainable, trainedMatrices } from "../memory/kind-memory.ts";
import { pairsByLayer } from "../memory/layer-memory.ts";
import type { PlanRequest } from "../request.ts";

/** FLOP, or seconds, of one layer for a micro-batch of mean size. */
export interface LayerWork {
  readonly forward: number;
  /** Without recompute. */
  readonly backward: number;
  /** What a block that recomputes runs again: everything but its last product, which the backward pass does not need. */
  readonly recompute: number;
  /** What a GPU adds to each of these passes to expand the layer's quantised weights, unless they are cached; 0 on CPUs. */
  readonly expansion: number;
}

interface PassWork {
  readonly forward: number;
  readonly backward: number;
}

/** Tokens that attention reads at most: the shortest of row, window and chunk. */
export function tokensSeen({ rules }: Pick<ModelSpec, "rules">, block: BlockLayer, rowTokens: number): number {
  const chunk = block.chunked === true ? rules.attentionChunk : null;
  return Math.min(rowTokens, block.slidingWindow ?? Number.POSITIVE_INFINITY, chunk ?? Number.POSITIVE_INFINITY);
}

/**
 * A token's FLOP in attention, in rows of this many tokens. Softmax: the causal half of two products for each head and key, and 2.5 times that
 * backward. A gated delta net's cost does not depend on the row's length: each token reads and changes the state of each value head in three
 * products of the state's size. Its backward pass recomputes states twice (two products each) and makes gradients in seven products.
 */
export function attentionWork(
  spec: Pick<ModelSpec, "shape" | "rules">,
  block: BlockLayer,
  rowTokens: number,
): PassWork {
  const { shape } = spec;
  const { attention } = block;
  if (attention.kind === "delta") {
    const { keyHeads, valueHeads, keyDim, valueDim, taps } = attention;
    const state = 2 * valueHeads * keyDim * valueDim;
    const conv = 2 * taps * (2 * keyHeads * keyDim + valueHeads * valueDim);
    return { forward: 3 * state + conv, backward: 11 * state + 3 * conv };
  }
  const seen = tokensSeen(spec, block, rowTokens);
  const widths = shape.headDim + (attention.kind === "latent" ? attention.value : shape.headDim);
  const forward = shape.heads * widths * seen;
  return { forward, backward: 2.5 * forward };
}

/** A token's FLOP for what DoRA with dropout adds to a pass: each module's product once more, with the dropped input. */
export function droppedProducts(pairs: readonly LoraTarget[]): number {
  const again = pairs.filter(({ dora, dropout }) => dora && dropout > 0);
  return again.reduce((sum, pair) => sum + 2 * pair.in * pair.out, 0);
}

/**
 * FLOP of every layer, products only: 2 for each weight, token and pass. With a frozen base a block has one forward pass and one backward pass
 * (the input's gradient); checkpointing adds most of another forward pass. The head has two passes over the label tokens. The embedding and
 * norms count as nothing. A LoRA pair adds one pass forward and two backward. DoRA with dropout adds its module's product once to each pass.
 * Causal attention adds half of T² for each head forward, and 2.5 times that backward. Layers below the lowest trained one only run forward.
 */
export function layerWork(request: PlanRequest): LayerWork[] {
  const { spec, work, lora } = request;
  const { hidden, vocab } = spec.shape;
  const lowest = lowestTrainable(request);
  const trained = trainedMatrices(request);
  const pairs = pairsByLayer(lora, spec.layers.length);
  return spec.layers.map((layer, index): LayerWork => {
    const learns = index >= lowest;
    const again = droppedProducts(pairs[index]!);
    const adapters = 2 * pairs[index]!.reduce((sum, pair) => sum + tokenRank(layer, pair) * (pair.in + pair.out), 0);
    if (layer.kind === "block") {
      const products = (linears: typeof layer.linears) =>
        2 * linears.reduce((sum, linear) => sum + linear.in * linear.out, 0);
      const chosen = layer.experts?.router.chosen ?? 0;
      const expert = layer.experts?.linears ?? [];
      const router = layer.experts === undefined ? [] : [layer.experts.router.linear];
      const weights = products(layer.linears) + products(router) + chosen * products(expert);
      const isDown = ({ role }: { readonly role: string }) => role === "down";
      const last = products(layer.linears.filter(isDown)) + chosen * products(expert.filter(isDown));
      const attention = attentionWork(spec, layer, work.rowTokens);
      const forward = (weights + attention.forward + adapters + again) * work.meanTokens;
      const backward = learns ? (weights + attention.backward + 2 * adapters + again) * work.meanTokens : 0;
      return { forward, backward, recompute: learns ? forward - last * work.meanTokens : 0, expansion: 0 };
    }
    if (layer.kind === "head") {
      const pass = 2 * hidden * vocab * work.meanLabelTokens;
      const forward = pass + (adapters + again) * work.meanLabelTokens;
      const whole = trained.some((matrix) => matrix.name === `${layer.name}.weight`) ? pass : 0;
      return {
        forward,
        backward: trained.length > 0 ? pass + whole + (2 * adapters + again) * work.meanLabelTokens : 0,
        recompute: 0,
        expansion: 0,
      };
    }
    return { forward: 0, backward: 0, recompute: 0, expansion: 0 };
  });
}
