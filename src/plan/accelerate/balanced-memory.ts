import type { MaxMemory } from "../devices.ts";
import type { ModuleSizes } from "./module-sizes.ts";
import type { ModuleTree } from "./module-tree.ts";

export interface BalanceOptions {
  readonly lowZero: boolean;
  /** Whether max_memory came from the user. If not, a single device keeps a tenth of its memory free. */
  readonly userGiven: boolean;
  readonly noSplitClasses: readonly string[];
}

/** Thrown where accelerate raises KeyError: balanced_low_0 uses device numbers 0 … n − 1, and one of them is not in max_memory. */
export class MissingDeviceError extends Error {
  readonly id: number;
  constructor(id: number) {
    super(`KeyError: ${id}`);
    this.id = id;
  }
}

/** accelerate's get_balanced_memory: the budgets that `auto`, `balanced` and `balanced_low_0` fill against. Throws MissingDeviceError. */
export function balancedMemory(
  tree: ModuleTree,
  sizes: ModuleSizes,
  max: MaxMemory,
  options: BalanceOptions,
): MaxMemory {
  const gpus = [...max].filter(([key, budget]) => typeof key === "number" && budget > 0).map(([key]) => key as number);
  if (gpus.length === 0) return max;
  const budgets = new Map(max);
  const lowZero = options.lowZero && gpus.length > 1;
  if (gpus.length === 1 && !options.userGiven) {
    const first = [...budgets.keys()].find((key) => typeof key === "number")!;
    budgets.set(first, (budgets.get(first) ?? 0) * 0.9);
  }
  const total = sizes.get("") ?? 0;
  const share =
    Math.floor(total / (lowZero ? gpus.length - 1 : gpus.length)) + slack(tree, sizes, options.noSplitClasses);

  gpus.sort((a, b) => a - b);
  for (const id of gpus.slice(0, -1)) {
    const own = budgets.get(id)!;
    budgets.set(id, lowZero && id === 0 ? own : Math.min(share, own));
  }
  if (lowZero) {
    let rest = total;
    for (let id = 1; id < gpus.length; id++) rest -= literal(budgets, id);
    budgets.set(0, Math.min(Math.max(0, rest), literal(budgets, 0)));
  }
  return budgets;
}

function literal(budgets: MaxMemory, id: number): number {
  const budget = budgets.get(id);
  if (budget === undefined) throw new MissingDeviceError(id);
  return budget;
}

/** Room for uneven cuts: 1.25 times the larger of the largest no-split module and the mean module that holds no other modules. */
function slack(tree: ModuleTree, sizes: ModuleSizes, noSplitClasses: readonly string[]): number {
  const firstOfClass = new Map<string, number>();
  for (const [name, size] of sizes) {
    const className = name === "" ? null : tree.classOf(name);
    if (className === null || !noSplitClasses.includes(className) || firstOfClass.has(className)) continue;
    firstOfClass.set(className, size);
  }
  const modules = withoutTerminals(new Set(sizes.keys()));
  const inner = withoutTerminals(modules);
  const terminals = [...modules].filter((name) => !inner.has(name));
  const sum = terminals.reduce((bytes, name) => bytes + (sizes.get(name) ?? 0), 0);
  const mean = Math.trunc(sum / Math.max(terminals.length, 1));
  return Math.trunc(1.25 * Math.max(0, ...firstOfClass.values(), mean));
}

/** The names that are a dotted prefix of another; "" is always kept. */
function withoutTerminals(names: ReadonlySet<string>): ReadonlySet<string> {
  const kept = new Set<string>();
  for (const name of names) {
    for (let dot = name.indexOf("."); dot >= 0; dot = name.indexOf(".", dot + 1)) {
      const prefix = name.slice(0, dot);
      if (names.has(prefix)) kept.add(prefix);
    }
    if (name !== "" && names.has("")) kept.add("");
  }
  return kept;
}
