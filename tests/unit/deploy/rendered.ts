import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { IIoK8sApiBatchV1Job, IJob } from "kubernetes-models/batch/v1";
import type { IConfigMap, IService } from "kubernetes-models/v1";
import { parseAllDocuments } from "yaml";
import { rendered, targets } from "../../../scripts/manifests.mjs";

export type KubernetesObject = {
  readonly apiVersion: string;
  readonly kind: string;
  readonly metadata: { name: string };
};
export type PodSpec = NonNullable<NonNullable<IIoK8sApiBatchV1Job["spec"]>["template"]["spec"]>;
export type Container = PodSpec["containers"][number];

export function parseObjects(text: string): KubernetesObject[] {
  return parseAllDocuments(text).map((document) => document.toJS() as KubernetesObject);
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

  job(name: string): IJob {
    return this.#find("Job", name) as IJob;
  }

  get jobs(): IJob[] {
    return this.objects.filter(({ kind }) => kind === "Job") as IJob[];
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
