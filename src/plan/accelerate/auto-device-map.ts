import type { DeviceKey, DeviceMap, MaxMemory } from "../devices.ts";
import { cleanDeviceMap } from "./clean-device-map.ts";
import type { ModuleSizes } from "./module-sizes.ts";
import { isUnder, type ModuleTree } from "./module-tree.ts";

/**
 * accelerate's infer_auto_device_map: fills the devices in order with the modules in order. The first GPU and the CPU keep room for the
 * largest layer still to come, as if it were brought back from an offload. A module that fits nowhere goes to "disk". `tied`: groups of
 * tensors that share memory and should share a device.
 */
export function autoDeviceMap(
  tree: ModuleTree,
  sizes: ModuleSizes,
  budgets: MaxMemory,
  tied: readonly (readonly string[])[],
): DeviceMap {
  return new Fill(tree, sizes, budgets, tied).run();
}

interface LargestLayer {
  readonly size: number;
  names: string[];
}

class Fill {
  readonly #tree: ModuleTree;
  readonly #sizes: ModuleSizes;
  readonly #budgets: MaxMemory;
  readonly #tied: readonly (readonly string[])[];
  readonly #devices: readonly DeviceKey[];
  readonly #main: ReadonlySet<DeviceKey>;
  readonly #map = new Map<string, DeviceKey>();
  #queue: string[];
  #largest: LargestLayer;

  constructor(tree: ModuleTree, sizes: ModuleSizes, budgets: MaxMemory, tied: readonly (readonly string[])[]) {
    this.#tree = tree;
    this.#sizes = sizes;
    this.#budgets = budgets;
    this.#tied = tied;
    const gpus = [...budgets.keys()].filter((key) => typeof key === "number").sort((a, b) => a - b);
    this.#devices = [...gpus, ...(budgets.has("cpu") ? (["cpu"] as const) : []), "disk"];
    this.#main = new Set<DeviceKey>(gpus.length > 0 ? [gpus[0]!, "cpu"] : ["cpu"]);
    this.#queue = [...tree.parameters(""), ...tree.children(""), ...tree.buffers("")];
    this.#largest = this.#findLargest();
  }

  run(): DeviceMap {
    let current = 0;
    let used = 0;
    while (this.#queue.length > 0) {
      const name = this.#queue.shift()!;
      this.#forget(name);
      const device = this.#devices[current]!;
      const reserve = this.#main.has(device) ? this.#largest.size : 0;
      const cap = device === "disk" ? Number.POSITIVE_INFINITY : (this.#budgets.get(device) ?? 0) - reserve;
      const size = this.#size(name);
      const partners = this.#partners(name);
      const owners = partners.map((tensor) => this.#queue.find((entry) => isUnder(tensor, entry))!);
      const need = partners.reduce((sum, tensor, i) => sum + this.#size(owners[i]!) - this.#size(tensor), size);

      if (used + need <= cap) {
        used += need;
        this.#place(name, owners, device);
        continue;
      }
      if (partners.length > 0 && used + size <= cap && this.#splitOwner(name, owners)) continue;
      if (used + size >= cap && this.#isSplittable(name)) {
        this.#queue.unshift(...this.#tree.parameters(name), ...this.#tree.children(name));
        this.#largest = this.#findLargest();
        continue;
      }
      this.#queue.unshift(name);
      current += 1;
      used = 0;
    }
    return cleanDeviceMap(this.#map);
  }

  #place(name: string, owners: readonly string[], device: DeviceKey): void {
    this.#map.set(name, device);
    for (const owner of owners) {
      this.#map.set(owner, device);
      const index = this.#queue.indexOf(owner);
      if (index >= 0) this.#queue.splice(index, 1);
    }
  }

  /** Replaces the first owner that may be split by its children, so that only the child with the tied tensor must move. */
  #splitOwner(name: string, owners: readonly string[]): boolean {
    const owner = owners.find((candidate) => this.#isSplittable(candidate));
    if (owner === undefined) return false;
    const index = this.#queue.indexOf(owner);
    this.#queue.splice(index, 1, ...this.#tree.parameters(owner), ...this.#tree.children(owner));
    this.#queue.unshift(name);
    this.#largest = this.#findLargest();
    return true;
  }

  /** Tensors outside `name` that share memory with one inside it. */
  #partners(name: string): string[] {
    return this.#tied.flatMap((group) => {
      const outside = group.filter((tensor) => !isUnder(tensor, name));
      return outside.length < group.length ? outside : [];
    });
  }

  #isSplittable(name: string): boolean {
    return this.#tree.children(name).length > 0 && !this.#tree.isNoSplit(name);
  }

  #size(name: string): number {
    return this.#sizes.get(name) ?? 0;
  }

  /** The largest layer is no longer pending once it, or what holds it, was taken from the queue. */
  #forget(name: string): void {
    this.#largest.names = this.#largest.names.filter((layer) => !isUnder(layer, name));
    if (this.#largest.names.length === 0) this.#largest = this.#findLargest();
  }

  /** The largest queued entry that has no children or may not be split, with all names of that size. */
  #findLargest(): LargestLayer {
    let size = 0;
    let names: string[] = [];
    const visit = (name: string): void => {
      if (this.#isSplittable(name)) {
        for (const child of this.#tree.children(name)) visit(child);
        return;
      }
      const own = this.#size(name);
      if (own > size) {
        size = own;
        names = [name];
      } else if (own === size) {
        names.push(name);
      }
    };
    for (const entry of this.#queue) visit(entry);
    return { size, names };
  }
}
