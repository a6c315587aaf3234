/** What can go wrong in a run. */
export const FAULTS = [
  "worker killed",
  "worker stopped",
  "worker terminated",
  "coordinator killed",
  "coordinator stopped",
  "coordinator terminated",
  "node parent killed",
  "link cut",
  "link slow",
  "link corrupted",
  "disk full",
  "checkpoint damaged",
] as const;

/** When it goes wrong. */
export const MOMENTS = ["join", "load", "forward", "backward", "update", "save", "eval", "resume", "finish"] as const;

/** Where the workers are and how they exchange tensors. */
export const PLACES = ["local", "shm", "nodes", "tls", "grpc"] as const;

/** What is trained and saved. */
export const KINDS = ["plain", "replicas", "nf4", "dropout", "eval", "only model", "each node"] as const;

export type Fault = (typeof FAULTS)[number];
export type Moment = (typeof MOMENTS)[number];
export type Place = (typeof PLACES)[number];
export type Kind = (typeof KINDS)[number];

export interface Point {
  readonly fault: Fault;
  readonly moment: Moment;
  readonly place: Place;
  readonly kind: Kind;
}

/** Points that have all of these values are not drawn. */
interface Excluded {
  readonly fault?: readonly Fault[];
  readonly moment?: readonly Moment[];
  readonly place?: readonly Place[];
  readonly kind?: readonly Kind[];
  readonly why: string;
}

const LINK_FAULTS = ["link cut", "link slow", "link corrupted"] as const;
const ON_ONE_MACHINE = ["local", "shm"] as const;

export const NOT_DRAWN: readonly Excluded[] = [
  { moment: ["eval"], kind: KINDS.filter((kind) => kind !== "eval"), why: "these runs don't evaluate" },
  {
    moment: ["resume"],
    kind: ["only model"],
    why: "a checkpoint without optimizer is not resumed: the run ends with PL_RESUME_INVALID before any moment comes",
  },
  {
    fault: ["checkpoint damaged"],
    moment: MOMENTS.filter((moment) => moment !== "resume"),
    why: "a checkpoint is read when a run resumes, and at no other time",
  },
  {
    fault: LINK_FAULTS,
    place: ON_ONE_MACHINE,
    why: "a local worker is told its coordinator's own address, so nothing can stand between; memory is no link to cut",
  },
  {
    fault: ["link corrupted"],
    place: ["nodes"],
    why: "these nodes' only link through a proxy is control traffic without TLS, which has TCP's checksums alone",
  },
  {
    fault: ["node parent killed"],
    place: ["local", "shm", "tls", "grpc"],
    why: "only a node of several devices has a parent process",
  },
  { kind: ["replicas"], place: ["nodes"], why: "three ranks make no two replicas" },
  { kind: ["each node"], place: ON_ONE_MACHINE, why: "local workers have the coordinator's disk" },
];

/** Why this point is not drawn; null if it may be. */
export function excluded(point: Point, rules = NOT_DRAWN): string | null {
  const rule = rules.find(
    ({ fault, moment, place, kind }) =>
      (fault?.includes(point.fault) ?? true) &&
      (moment?.includes(point.moment) ?? true) &&
      (place?.includes(point.place) ?? true) &&
      (kind?.includes(point.kind) ?? true),
  );
  return rule?.why ?? null;
}

/** All points of a fault that are drawn. */
export function pointsOf(fault: Fault): Point[] {
  return MOMENTS.flatMap((moment) =>
    PLACES.flatMap((place) => KINDS.map((kind): Point => ({ fault, moment, place, kind }))),
  ).filter((point) => excluded(point) === null);
}
