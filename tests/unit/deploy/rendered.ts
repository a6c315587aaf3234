import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { IIoK8sApiBatchV1Job, IJob } from "kubernetes-models/batch/v1";
import type { IConfigMap, IService } from "kubernetes-models/v1";
import { parseAllDocuments } from "yaml";
import { rendered, targets } from "../../../scripts/manifests.mjs";

export type KubernetesObject = {
  readonly apiVersion: string;
  readonly kind: string;
  readonly metadata: { name: string; labels?: Readonly<Record<string, string>> };
};
export type PodSpec = NonNullable<NonNullable<IIoK8sApiBatchV1Job["spec"]>["template"]["spec"]>;
export type Container = PodSpec["containers"][number];

export function parseObjects(text: string): KubernetesObject[] {
  return parseAllDocuments(text).map((document) => document.toJS() as KubernetesObject);
}

/** A JobSet's spec, of what the tests read. */
export interface JobSetSpec {
  readonly replicatedJobs: readonly {
    readonly name: string;
    readonly replicas: number;
    readonly template: Omit<IJob, "apiVersion" | "kind">;
  }[];
  readonly network: { readonly enableDNSHostnames: boolean };
  readonly successPolicy: { readonly targetReplicatedJobs: readonly string[] };
  readonly failurePolicy: {
    readonly rules: readonly {
      readonly name: string;
      readonly action: string;
      readonly onJobFailureReasons: readonly string[];
    }[];
  };
}

/** The set of Jobs that an object stands for; null: none. */
export function setOf(object: KubernetesObject): JobSetSpec | null {
  const { spec } = object as unknown as { spec: unknown };
  if (object.kind === "JobSet") return spec as JobSetSpec;
  return object.kind === "TrainingRuntime" ? (spec as { template: { spec: JobSetSpec } }).template.spec : null;
}

/** What kustomize makes of deploy/k8s's base, an overlay or another. */
export class Manifests {
  readonly name: string;
  readonly text: string;
  readonly objects: readonly KubernetesObject[];

  /** `text`: as rendered; none: the copy of the base or an overlay. */
  constructor(name: string, text = readFileSync(join(rendered, `${name}.yaml`), "utf8")) {
    this.name = name;
    this.text = text;
    this.objects = parseObjects(text);
  }

  /** The coordinator's, or the workers': an object of its own, or one that a set's controller makes. */
  job(role: "coordinator" | "worker"): IJob {
    const of = ({ spec }: IJob) => spec!.template.metadata?.labels?.["app.kubernetes.io/component"];
    const found = this.jobs.find((job) => of(job) === role);
    if (found === undefined) throw new Error(`${this.name} has no Job of the ${role}`);
    return found;
  }

  /** Every Job, under the name it will have. */
  get jobs(): IJob[] {
    return this.objects.flatMap((object) => {
      if (object.kind === "Job") return [object as IJob];
      const set = setOf(object);
      if (set === null) return [];
      return set.replicatedJobs.map(({ name, template }) => ({
        ...template,
        apiVersion: "batch/v1" as const,
        kind: "Job" as const,
        metadata: { ...template.metadata, name: `${object.metadata.name}-${name}-0` },
      }));
    });
  }

  service(name: string): IService {
    return this.#find("Service", name) as IService;
  }

  object<T>(kind: string, name: string): T {
    return this.#find(kind, name) as T;
  }

  has(kind: string, name: string): boolean {
    return this.objects.some((object) => object.kind === kind && object.metadata.name === name);
  }

  configMap(name: string): Readonly<Record<string, string>> {
    return (this.#find("ConfigMap", name) as IConfigMap).data ?? {};
  }

  #find(kind: string, name: string): unknown {
    const found = this.objects.find((object) => object.kind === kind && object.metadata.name === name);
    if (found === undefined) throw new Error(`${this.name} has no ${kind} ${name}`);
    return found;
  }
}

export const ALL_MANIFESTS = targets().map(([name]) => new Manifests(name));

export function podOf(job: IJob): PodSpec {
  return job.spec!.template.spec!;
}

export function containersOf(pod: PodSpec): Container[] {
  return [...(pod.initContainers ?? []), ...pod.containers];
}

/** The container's variables, with stand-ins for what Kubernetes fills in. */
export function environmentOf({ env = [] }: Container): Map<string, string> {
  return new Map(env.map(({ name, value }) => [name, value ?? "0"]));
}

/** $(NAME) in arguments, as a kubelet replaces it. */
export function expandedArgs(container: Container): string[] {
  const environment = environmentOf(container);
  return (container.args ?? []).map((arg) =>
    arg.replaceAll(/\$\((\w+)\)/g, (_, name: string) => {
      const value = environment.get(name);
      if (value === undefined)
        throw new Error(`${container.name}: $(${name}) in "${arg}" is no variable of the container`);
      return value;
    }),
  );
}
