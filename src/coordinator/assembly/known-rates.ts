import { type LinkRate, linkKey, type MeasuredDevice, type RateOverrides } from "../../plan/request.ts";
import type { WorkerConnection } from "../../rpc/worker-connection.ts";
import { processOf } from "../cluster/returning.ts";

/** What was measured of workers, by their processes: those that go on with others need not be measured again. */
export class KnownRates {
  readonly #devices = new Map<string, MeasuredDevice>();
  /** Between workers, and between nodes. */
  readonly #links = new Map<string, LinkRate>();
  readonly #nodeLinks = new Map<string, LinkRate>();
  #crowded: RateOverrides["crowded"] = new Map();

  /** `rates` are by rank. */
  add(members: readonly WorkerConnection[], { measured, links, crowded }: RateOverrides): void {
    const names = members.map(({ hello }) => processOf(hello));
    for (const [rank, device] of measured) this.#devices.set(names[rank]!, device);
    for (const [key, rate] of links) {
      const [a, b] = JSON.parse(key) as [number | string, number | string];
      if (typeof a === "number") this.#links.set(linkKey(names[a]!, names[b as number]!), rate);
      else this.#nodeLinks.set(key, rate);
    }
    this.#crowded = crowded;
  }

  /** Of these workers, by rank; null while one of them was not measured. */
  of(members: readonly WorkerConnection[]): RateOverrides | null {
    const names = members.map(({ hello }) => processOf(hello));
    const measured = names.flatMap((name, rank) => {
      const device = this.#devices.get(name);
      return device === undefined ? [] : [[rank, device] as const];
    });
    if (measured.length < members.length) return null;
    const links = new Map(this.#nodeLinks);
    for (const [key, rate] of this.#links) {
      const [a, b] = (JSON.parse(key) as [string, string]).map((name) => names.indexOf(name));
      if (a! >= 0 && b! >= 0) links.set(linkKey(a!, b!), rate);
    }
    return { measured: new Map(measured), links, crowded: this.#crowded };
  }
}
