/** What a worker says of its place, as far as membership goes. */
export interface Placed {
  readonly node: string;
  /** Position of its device on the node. */
  readonly localIndex: number;
  /** Devices that the node brings. */
  readonly nodeDevices: number;
}

export interface WantedNodes {
  readonly count: number;
  /** Names of exactly these nodes; null: any. */
  readonly names: readonly string[] | null;
  /** Nodes of the attempt before: a restarted run waits for them before it takes others. */
  readonly before: readonly string[];
}

/** Node-major order: by the node's name (numbers in it by value), then by device. It outlives restarts and moves between hosts. */
export function byNodeAndDevice(a: Placed, b: Placed): number {
  return compareNames(a.node, b.node) || a.localIndex - b.localIndex;
}

function compareNames(a: string, b: string): number {
  return a.localeCompare(b, "en", { numeric: true }) || (a < b ? -1 : a > b ? 1 : 0);
}

/**
 * The workers that make up the run, in rank order, or null while some are missing: every device of as many whole nodes as asked for.
 * Nodes of the attempt before come first; `strangersToo`: others may take their place by now.
 */
export function chooseMembers<T extends Placed>(
  joined: readonly T[],
  wanted: WantedNodes,
  strangersToo: boolean,
): T[] | null {
  const whole = [...groupByNode(joined)].filter(([, workers]) => workers.length >= workers[0]!.nodeDevices);
  const known = (node: string) => wanted.before.includes(node);
  const usable = whole
    .map(([node]) => node)
    .filter((node) => wanted.names?.includes(node) ?? true)
    .filter((node) => strangersToo || wanted.before.length === 0 || known(node))
    .sort((a, b) => Number(known(b)) - Number(known(a)) || compareNames(a, b))
    .slice(0, wanted.count);
  if (usable.length < wanted.count) return null;
  return joined.filter(({ node }) => usable.includes(node)).sort(byNodeAndDevice);
}

/** All that an elastic run can take, in rank order: every device of whole nodes; `parts`: of the others too, whose processes stand alone. */
export function everyMember<T extends Placed>(
  joined: readonly T[],
  { names, parts }: { readonly names: readonly string[] | null; readonly parts: boolean },
): T[] {
  const usable = [...groupByNode(joined)]
    .filter(
      ([node, workers]) => (names?.includes(node) ?? true) && (parts || workers.length >= workers[0]!.nodeDevices),
    )
    .map(([node]) => node);
  return joined.filter(({ node }) => usable.includes(node)).sort(byNodeAndDevice);
}

/** Who is there and who is missing, for people. */
export function describeMissing(joined: readonly Placed[], wanted: WantedNodes): string {
  const groups = groupByNode(joined);
  const present = [...groups].map(([node, workers]) => {
    const { nodeDevices } = workers[0]!;
    if (workers.length >= nodeDevices) return `${node} (${nodeDevices} of ${nodeDevices} devices)`;
    const here = new Set(workers.map(({ localIndex }) => localIndex));
    const lacking = Array.from({ length: nodeDevices }, (_, index) => index).filter((index) => !here.has(index));
    return `${node} (${workers.length} of ${nodeDevices} devices; device ${lacking.join(", ")} is missing)`;
  });
  const expected = wanted.names ?? wanted.before;
  const absent = expected.filter((node) => !groups.has(node));
  const joinedText = `joined: ${present.sort().join(", ") || "nobody"}`;
  if (absent.length > 0) return `missing: ${absent.join(", ")}; ${joinedText}`;
  return `${Math.max(0, wanted.count - groups.size)} more nodes are missing; ${joinedText}`;
}

function groupByNode<T extends Placed>(workers: readonly T[]): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const worker of workers) groups.set(worker.node, [...(groups.get(worker.node) ?? []), worker]);
  return groups;
}
