import { existsSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

/** The part of node-llama-cpp that is used: llama.cpp itself on the CPU. */
interface LlamaCpp {
  readonly getLlama: (options: object) => Promise<Llama>;
}
interface Llama {
  loadModel(options: object): Promise<LlamaModel>;
  dispose(): Promise<void>;
}
export interface LlamaModel {
  createContext(options: object): Promise<LlamaContext>;
  tokenize(text: string, special?: boolean): number[];
  dispose(): Promise<void>;
}
interface LlamaContext {
  getSequence(): { evaluate(tokens: number[], options: object): AsyncGenerator<number> };
  dispose(): Promise<void>;
}

/**
 * The folder in which `npm install node-llama-cpp@3.21.1` was run: PIPELORA_LLAMA_CPP, else .cache/llama-cpp. It is not among the
 * dependencies: its binary has 80 MB. null: not there, and the caller skips.
 */
function folder(): string | null {
  const dir = process.env["PIPELORA_LLAMA_CPP"] ?? new URL("../../../.cache/llama-cpp", import.meta.url).pathname;
  return existsSync(join(dir, "node_modules/node-llama-cpp/dist/index.js")) ? dir : null;
}

/** llama.cpp on the CPU, to be disposed of by the caller; null: not installed. */
export async function openLlamaCpp(): Promise<Llama | null> {
  const dir = folder();
  if (dir === null) return null;
  const url = pathToFileURL(join(dir, "node_modules/node-llama-cpp/dist/index.js")).href;
  const { getLlama } = (await import(url)) as LlamaCpp;
  return getLlama({ gpu: false, build: "never", logLevel: "error", maxThreads: 1 });
}

export interface Asked {
  readonly prompt: readonly number[];
  readonly count: number;
  /** A GGUF LoRA; none: the model alone. */
  readonly adapter?: string;
}

/** The ids that llama.cpp continues a prompt with, greedily; keys and values in float32. */
export async function llamaGreedy(model: LlamaModel, { prompt, count, adapter }: Asked): Promise<number[]> {
  const context = await model.createContext({
    contextSize: 256,
    threads: 1,
    flashAttention: false,
    experimentalKvCacheKeyType: "F32",
    experimentalKvCacheValueType: "F32",
    ...(adapter === undefined ? {} : { lora: { adapters: [{ filePath: adapter, scale: 1 }] } }),
  });
  const ids: number[] = [];
  for await (const id of context.getSequence().evaluate([...prompt], { temperature: 0, yieldEogToken: true })) {
    ids.push(id);
    if (ids.length === count) break;
  }
  await context.dispose();
  return ids;
}
