import { expertStacks } from "./experts.ts";
import type { BlockLayer, ExpertsSpec, LinearRole, LinearSpec, ModuleSpec, RouterSpec, TensorSpec } from "./spec.ts";
import { linearTensors, parameter } from "./tensors.ts";

/** What a family says of its experts. Paths are leaves below the block's MLP. */
export interface FamilyExperts {
  readonly count: number;
  /** Width of gate and up, each, of one expert. */
  readonly ffn: number;
  /** The router's module, "gate" or "router". */
  readonly router: string;
  readonly routerBias?: boolean;
  readonly route: Pick<RouterSpec, "chosen" | "score" | "normalise"> & Partial<Pick<RouterSpec, "groups" | "factor">>;
  /** The leaf of the scores' correction in the router. */
  readonly correction?: string;
  /** An MLP for every token, and the leaf of its gate σ(h wᵀ); absent: none. */
  readonly shared?: { readonly name: string; readonly ffn: number; readonly gate?: string };
  /** Leaves of one expert's linears in the checkpoint: gate, up, down, or gate_up and down. */
  readonly leaves?: readonly [string, string, string] | readonly [string, string];
  readonly bias?: boolean;
  /** What the checkpoint calls the MLP, where that is another name (Mixtral). */
  readonly stored?: string;
  readonly transposed?: boolean;
  readonly storedAtOnce?: boolean;
  readonly packed?: "mxfp4" | null;
  readonly clamp?: { readonly limit: number; readonly alpha: number };
  readonly interleaved?: boolean;
  readonly weighsInput?: boolean;
  readonly crossedPairs?: boolean;
  /** The family's class registers the router before the experts. */
  readonly routerFirst: boolean;
}

const LEAVES = ["gate_proj", "up_proj", "down_proj"] as const;

export function familyExperts(family: FamilyExperts, mlp: string, hidden: number): ExpertsSpec {
  const { count, ffn, route } = family;
  const leaves = family.leaves ?? LEAVES;
  const stored = family.stored === undefined ? mlp : mlp.replace(/[^.]+$/, family.stored);
  const linear = (role: LinearRole, leaf: string, width: number, out: number): LinearSpec => ({
    role,
    name: `${stored}.experts.*.${leaf}`,
    in: width,
    out,
    bias: family.bias ?? false,
  });
  const inputs: LinearSpec[] =
    leaves.length === 2
      ? [linear("gate_up", leaves[0], hidden, 2 * ffn)]
      : [linear("gate", leaves[0], hidden, ffn), linear("up", leaves[1], hidden, ffn)];
  const router = `${mlp}.${family.router}`;
  return {
    name: `${mlp}.experts`,
    count,
    router: {
      linear: { role: "router", name: router, in: hidden, out: count, bias: family.routerBias ?? false },
      stored: `${stored}.${family.router}`,
      correction: family.correction === undefined ? null : `${router}.${family.correction}`,
      groups: null,
      factor: 1,
      ...route,
    },
    linears: [...inputs, linear("down", leaves.at(-1)!, ffn, hidden)],
    transposed: family.transposed ?? false,
    storedAtOnce: family.storedAtOnce ?? false,
    packed: family.packed ?? null,
    clamp: family.clamp ?? null,
    interleaved: family.interleaved ?? false,
    weighsInput: family.weighsInput ?? false,
    crossedPairs: family.crossedPairs ?? false,
    routerFirst: family.routerFirst,
  };
}

/** Linears of the shared expert and of its gate. */
export function sharedLinears({ shared }: FamilyExperts, mlp: string, hidden: number): LinearSpec[] {
  if (shared === undefined) return [];
  const linear = (role: LinearRole, name: string, width: number, out: number): LinearSpec => ({
    role,
    name: `${mlp}.${name}`,
    in: width,
    out,
    bias: false,
  });
  return [
    linear("gate", `${shared.name}.gate_proj`, hidden, shared.ffn),
    linear("up", `${shared.name}.up_proj`, hidden, shared.ffn),
    linear("down", `${shared.name}.down_proj`, shared.ffn, hidden),
    ...(shared.gate === undefined ? [] : [linear("shared_gate", shared.gate, hidden, 1)]),
  ];
}

/** The modules of a block's MLP that is a mixture of experts. */
export function expertModules(
  { experts, linears }: BlockLayer,
  mlp: string,
  prefix: string,
  activation: string,
): ModuleSpec[] {
  const module = (name: string, className: string): ModuleSpec => ({ name, className });
  const { name, router, routerFirst, clamp } = experts!;
  const routed = module(router.linear.name, `${prefix}TopKRouter`);
  const all = [module(name, `${prefix}Experts`), ...(clamp === null ? [module(`${name}.act_fn`, activation)] : [])];
  const own = linears.filter((linear) => linear.name.startsWith(`${mlp}.`));
  const shared = own.find(({ role }) => role === "down");
  return [
    module(mlp, `${prefix}SparseMoeBlock`),
    ...(routerFirst ? [routed, ...all] : [...all, routed]),
    ...own.flatMap((linear) => {
      const path = linear.name.slice(0, linear.name.lastIndexOf("."));
      const made = module(linear.name, "Linear");
      if (linear.role === "gate") return [module(path, `${prefix}MLP`), made];
      return linear === shared ? [made, module(`${path}.act_fn`, activation)] : [made];
    }),
  ];
}

/** Parameters (and the buffer that corrects scores) of router and experts, in the order of their modules. */
export function expertTensors(experts: ExpertsSpec): TensorSpec[] {
  const { router, routerFirst } = experts;
  const routed = linearTensors(router.linear).map(
    (tensor): TensorSpec => ({ ...tensor, stored: router.stored + tensor.name.slice(router.linear.name.length) }),
  );
  const correction = router.correction;
  const corrected: TensorSpec[] =
    correction === null
      ? []
      : [{ name: correction, shape: [experts.count], kind: "buffer", dtype: "float32", persistent: true }];
  const all = expertStacks(experts).map(({ name, shape }) => parameter(name, shape));
  return routerFirst ? [...routed, ...corrected, ...all] : [...all, ...routed, ...corrected];
}
