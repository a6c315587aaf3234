import type { ModelSpec } from "../../models/spec.ts";

/** What accelerate asks of a torch module tree. */
export interface ModuleTree {
  /** Class of a module; null for a tensor or an unknown name. */
  classOf(name: string): string | null;
  /** named_children(), full names. */
  children(name: string): readonly string[];
  /** named_parameters(recurse=False), full names. */
  parameters(name: string): readonly string[];
  /** named_buffers(recurse=False), full names. */
  buffers(name: string): readonly string[];
  /** Whether the module's class says that it must not be split. */
  isNoSplit(name: string): boolean;
}

const NONE: readonly string[] = [];

export function moduleTree(spec: ModelSpec): ModuleTree {
  const classes = new Map(spec.modules.map((module) => [module.name, module.className]));
  const children = new Map<string, string[]>();
  const parameters = new Map<string, string[]>();
  const buffers = new Map<string, string[]>();
  for (const { name } of spec.modules) if (name !== "") append(children, parentOf(name), name);
  for (const { name, kind } of spec.tensors) append(kind === "buffer" ? buffers : parameters, parentOf(name), name);
  const noSplit = new Set(spec.noSplitModuleClasses);
  return {
    classOf: (name) => classes.get(name) ?? null,
    children: (name) => children.get(name) ?? NONE,
    parameters: (name) => parameters.get(name) ?? NONE,
    buffers: (name) => buffers.get(name) ?? NONE,
    isNoSplit: (name) => noSplit.has(classes.get(name) ?? ""),
  };
}

/** "a.b.c" -> "a.b"; a top-level name -> "". */
export function parentOf(name: string): string {
  const dot = name.lastIndexOf(".");
  return dot < 0 ? "" : name.slice(0, dot);
}

/** Whether `name` is `prefix` or lies under it; everything lies under "". */
export function isUnder(name: string, prefix: string): boolean {
  return prefix === "" || name === prefix || name.startsWith(`${prefix}.`);
}

function append(groups: Map<string, string[]>, key: string, name: string): void {
  const group = groups.get(key);
  if (group === undefined) groups.set(key, [name]);
  else group.push(name);
}
