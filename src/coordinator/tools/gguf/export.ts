import { basename, join } from "node:path";
import { PipeloraError } from "../../../common/errors.ts";
import { isFile, readJsonFile } from "../../../common/files.ts";
import type { Logger } from "../../../common/log.ts";
import { ensureWritable } from "../../../common/output-dir.ts";
import type { Config } from "../../../config/options.ts";
import { CHATML, ChatTemplate } from "../../../data/chat-template.ts";
import { loadEngine } from "../../../engine/index.ts";
import { writeTextAtomically } from "../../../formats/atomic-file.ts";
import { float32, type MetadataValue, string, uint32 } from "../../../formats/gguf/metadata.ts";
import { encodeValues, type RoundedType } from "../../../formats/gguf/tensor-types.ts";
import { type GgufTensor, writeGguf } from "../../../formats/gguf/write.ts";
import { describeTokenizer, loadTokenizer } from "../../../formats/tokenizer/load.ts";
import type { Tokenizer } from "../../../formats/tokenizer/tokenizer.ts";
import { type ModelSettings, type ModelSetup, setUpModel } from "../../planning/model-setup.ts";
import { AdaptedWeights } from "../adapted-weights.ts";
import { refuseTiedTargets } from "../merge.ts";
import { adapterTensors } from "./adapter-file.ts";
import type { Architecture } from "./architectures.ts";
import { architectureFor } from "./fit.ts";
import { modelKeys, windowWarning } from "./keys.ts";
import { modelfileText, ollamaTemplate } from "./modelfile.ts";
import { ropeLayout } from "./rope.ts";
import { TensorData, typeOf } from "./tensor-data.ts";
import { layouts } from "./tensors.ts";
import { specialTokenKeys, vocabularyOf } from "./vocabulary.ts";

const MAX_CONFIG_BYTES = 16 << 20;
/** general.file_type */
const FILE_TYPES: Readonly<Record<RoundedType, number>> = { f32: 0, f16: 1, q8_0: 7, bf16: 32 };
/** general.quantization_version */
const QUANTIZATION = 2;
/** What ends of turns are called, which a Modelfile's stops are looked for among. */
const SAMPLING = { temperature: "temperature", top_p: "top_p", top_k: "top_k", repetition_penalty: "repeat_penalty" };

export interface Exported {
  readonly files: readonly string[];
  readonly architecture: string;
  readonly type: RoundedType;
  readonly tensors: number;
  readonly warnings: readonly string[];
}

type ExportSettings = ModelSettings & Pick<Config, "output_dir" | "outtype" | "adapter_only">;

/**
 * Writes the model, with the adapter merged where one is given, as a GGUF file for llama.cpp and what is built on it, and an Ollama
 * Modelfile beside it; with --adapter-only the adapter alone, as a GGUF LoRA. Errors: PL_MODEL_UNSUPPORTED, PL_TOKENIZER_INVALID,
 * PL_ADAPTER_INVALID, PL_QUANTIZATION_INVALID, PL_OUTPUT_UNWRITABLE.
 */
export async function exportGguf(config: ExportSettings, log: Logger): Promise<Exported> {
  if (config.adapter_only && config.adapter === null) {
    throw new PipeloraError("PL_CONFIG_INVALID", "--adapter-only needs --adapter.", {
      hint: "Name the adapter's folder, or leave --adapter-only out to write the base.",
    });
  }
  const setup = await setUpModel(config, log, { weights: !config.adapter_only, lora: false });
  const architecture = architectureFor(setup.spec);
  const dir = await ensureWritable(config.output_dir!);
  const model = basename(setup.name.replace(/[@:].*$/, ""));
  return config.adapter_only
    ? exportAdapter(setup, architecture, { dir, model, outtype: config.outtype })
    : exportModel(setup, architecture, { dir, model, outtype: config.outtype });
}

interface Target {
  readonly dir: string;
  /** The base's last name. */
  readonly model: string;
  readonly outtype: Config["outtype"];
}

const fileName = (model: string, type: RoundedType, kind = "") => `${model}-${type.toUpperCase()}${kind}.gguf`;

async function exportModel(setup: ModelSetup, architecture: Architecture, target: Target): Promise<Exported> {
  const { spec, dir: source, adapter, holdDtype } = setup;
  if (adapter !== null) refuseTiedTargets(setup);
  const carried = { float32: "f32", float16: "f16", bfloat16: "bf16" } as const;
  const type = target.outtype === "auto" ? carried[holdDtype] : target.outtype;
  const tokenizer = await loadTokenizer(source);
  const vocabulary = vocabularyOf(await describeTokenizer(source), tokenizer, spec.shape.vocab);
  const rope = ropeLayout(spec, architecture, await textConfig(source));
  const template = tokenizer.chatTemplate ?? (tokenizer.isQwen1 ? CHATML : null);
  const metadata = new Map<string, MetadataValue>([
    ["general.architecture", string(architecture.name)],
    ["general.type", string("model")],
    ["general.name", string(adapter === null ? target.model : `${target.model} with ${basename(adapter.dir)}`)],
    ["general.file_type", uint32(FILE_TYPES[type])],
    ["general.quantization_version", uint32(QUANTIZATION)],
    ...baseModelKeys(setup),
    ...[...modelKeys(spec, architecture), ...rope.keys].map(
      ([key, value]) => [`${architecture.name}.${key}`, value] as const,
    ),
    ...[...vocabulary.keys, ...specialTokenKeys(tokenizer, spec.eosTokenIds)].map(
      ([key, value]) => [`tokenizer.${key}`, value] as const,
    ),
    ...(template === null ? [] : [["tokenizer.chat_template", string(template)] as const]),
  ]);
  const data = new TensorData(setup, new AdaptedWeights(loadEngine(), setup, () => false));
  const planned = layouts(spec, architecture);
  const tensors: GgufTensor[] = [
    ...planned.map((layout) => data.tensor(layout, type)),
    ...rope.tensors.map(({ name, values }) => ({
      name,
      shape: [values.length],
      type: "f32" as const,
      data: async function* () {
        yield encodeValues(Float32Array.from(values), "f32");
      },
    })),
  ];
  const file = fileName(target.model, type);
  await writeGguf(join(target.dir, file), metadata, tensors);
  const modelfile = await writeModelfile(setup, tokenizer, {
    dir: target.dir,
    from: `./${file}`,
    adapter: null,
    template,
  });
  const narrow = planned.filter(
    (layout) => typeOf(layout, type) !== type && !layout.exact && layout.packed === undefined,
  );
  const window = windowWarning(spec, architecture);
  return {
    files: [file, "Modelfile"],
    architecture: architecture.name,
    type,
    tensors: tensors.length,
    warnings: [
      ...setup.warnings,
      ...vocabulary.warnings,
      ...rope.warnings,
      ...(window === null ? [] : [window]),
      ...(narrow.length === 0
        ? []
        : [`${narrow.length} tensors have rows of no whole blocks of 32 values: they are in f16`]),
      ...modelfile,
    ],
  };
}

async function exportAdapter(setup: ModelSetup, architecture: Architecture, target: Target): Promise<Exported> {
  const { spec, dir: source } = setup;
  const [adapter, lora] = [setup.adapter!, setup.lora!];
  refuseTiedTargets(setup);
  const type = target.outtype === "auto" ? "f32" : target.outtype;
  const tokenizer = await loadTokenizer(source);
  const tensors = adapterTensors(spec, architecture, { adapter, lora }, type);
  const metadata = new Map<string, MetadataValue>([
    ["general.architecture", string(architecture.name)],
    ["general.type", string("adapter")],
    ["general.name", string(basename(adapter.dir))],
    ["general.file_type", uint32(FILE_TYPES[type])],
    ["general.quantization_version", uint32(QUANTIZATION)],
    ...baseModelKeys(setup),
    ["adapter.type", string("lora")],
    ["adapter.lora.alpha", float32(lora.settings.alpha)],
  ]);
  const file = fileName(basename(adapter.dir), type, "-LoRA");
  await writeGguf(join(target.dir, file), metadata, tensors);
  const carried = { float32: "f32", float16: "f16", bfloat16: "bf16" } as const;
  const from = `./${fileName(target.model, carried[setup.holdDtype])}`;
  const template = tokenizer.chatTemplate ?? (tokenizer.isQwen1 ? CHATML : null);
  const modelfile = await writeModelfile(setup, tokenizer, { dir: target.dir, from, adapter: `./${file}`, template });
  return {
    files: [file, "Modelfile"],
    architecture: architecture.name,
    type,
    tensors: tensors.length,
    warnings: [...setup.warnings, ...modelfile],
  };
}

function baseModelKeys({ name, hub }: ModelSetup): (readonly [string, MetadataValue])[] {
  if (hub === null) return [];
  const [owner, model] = name.replace(/[@:].*$/, "").split("/") as [string, string];
  return [
    ["general.base_model.count", uint32(1)],
    ["general.base_model.0.name", string(model)],
    ["general.base_model.0.organization", string(owner)],
    ["general.base_model.0.repo_url", string(`https://huggingface.co/${owner}/${model}`)],
  ];
}

/** config.json, of a model with a vision tower its text model's part. */
async function textConfig(dir: string): Promise<unknown> {
  const config = (await readJsonFile(join(dir, "config.json"), MAX_CONFIG_BYTES)) as Record<string, unknown>;
  const text = config["text_config"];
  return typeof text === "object" && text !== null ? text : config;
}

/** Returns what is to be said of it. */
async function writeModelfile(
  { dir, spec }: ModelSetup,
  tokenizer: Tokenizer,
  target: {
    readonly dir: string;
    readonly from: string;
    readonly adapter: string | null;
    readonly template: string | null;
  },
): Promise<string[]> {
  const path = join(dir, "generation_config.json");
  const generation = (await isFile(path))
    ? ((await readJsonFile(path, MAX_CONFIG_BYTES)) as Record<string, unknown>)
    : {};
  const parameters = Object.fromEntries(
    Object.entries(SAMPLING).flatMap(([key, name]) => {
      const value = generation[key];
      return typeof value === "number" && Number.isFinite(value) ? [[name, value]] : [];
    }),
  );
  const ends = new Set([...spec.eosTokenIds, ...(tokenizer.eosId === null ? [] : [tokenizer.eosId])]);
  const stops = [...ends].map((id) => tokenizer.decode([id])).filter((text) => text !== "");
  const start = tokenizer.specialTokens["bos_token"];
  const bos = start === undefined ? null : { text: start, added: tokenizer.addBos };
  const template =
    target.template === null ? null : ollamaTemplate(new ChatTemplate(tokenizer, target.template, new Date()), bos);
  const text = modelfileText({ from: target.from, adapter: target.adapter, template, stops, parameters });
  await writeTextAtomically(join(target.dir, "Modelfile"), text);
  return template === null && target.template !== null
    ? [
        "the chat template has no equal in Ollama's language: the Modelfile leaves it to Ollama, which guesses by the file's own",
      ]
    : [];
}
