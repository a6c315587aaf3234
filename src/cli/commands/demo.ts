import { readdir, rm } from "node:fs/promises";
import { join, relative } from "node:path";
import { PipeloraError } from "../../common/errors.ts";
import { isFile } from "../../common/files.ts";
import type { Config } from "../../config/options.ts";
import { DEMO_DATASET, DEMO_SYSTEM, makeDemoModel } from "../../coordinator/tools/demo-model.ts";
import { runCoordinator } from "../own-program.ts";

const FOLDER = "pipelora-demo";
const QUESTION = "What is LoRA?";

/**
 * The main job end to end, small: makes a Qwen-shaped model, plans a placement over three worker processes, trains LoRA through a gRPC
 * pipeline, saves the adapter, and asks the model before and after.
 */
export async function demoCommand(config: Config): Promise<number> {
  const folder = config.output_dir ?? FOLDER;
  const model = join(folder, "model");
  const adapter = join(folder, "adapter");
  await clear(folder);

  say("A small Qwen-shaped model of random weights, and a tokenizer learnt from the sample rows");
  await makeDemoModel(model);

  const dataset = relative(process.cwd(), DEMO_DATASET);
  const ask = [
    ...["--model", model, "--workers", "3", "--system", DEMO_SYSTEM, "--prompt", QUESTION],
    ...["--max-new-tokens", "40", "--log-level", "warn"],
  ];
  const train = [
    ...[
      "--model",
      model,
      "--dataset",
      dataset,
      "--system",
      DEMO_SYSTEM,
      "--device-map",
      "balanced_low_0",
      "--workers",
      "3",
    ],
    ...["--target-modules", "c_attn,c_proj,w1,w2,lm_head", "--lora-r", "32", "--lora-alpha", "64"],
    ...["--per-device-train-batch-size", "7", "--gradient-accumulation-steps", "2", "--num-train-epochs", "20"],
    ...["--learning-rate", "4e-3", "--lr-scheduler-type", "cosine", "--warmup-steps", "5"],
    ...["--logging-steps", "6", "--save-steps", "30", "--output-dir", adapter],
  ];
  const steps: readonly (readonly [string, readonly string[]])[] = [
    ["A reply before training", ["generate", ...ask]],
    ["Training over three worker processes", train],
    ["The same question after training", ["generate", ...ask, "--adapter", adapter]],
  ];
  for (const [title, args] of steps) {
    say(title);
    process.stdout.write(`$ coordinator ${args.map((arg) => (/[\s?]/.test(arg) ? `"${arg}"` : arg)).join(" ")}\n`);
    const { code } = await runCoordinator(args, { shown: true });
    if (code !== 0) return code;
  }
  say(`The adapter, as peft reads it, in ${adapter}`);
  process.stdout.write(`${(await readdir(adapter)).sort().join("\n")}\n`);
  return 0;
}

/** Removes what an earlier demo left. A folder that holds anything else is left alone: it is the user's. */
async function clear(folder: string): Promise<void> {
  const held = await readdir(folder).catch(() => [] as string[]);
  const own = held.every((name) => ["model", "adapter"].includes(name));
  const demo = held.length === 0 || (own && (await isFile(join(folder, "model", "qwen.tiktoken"))));
  if (!demo)
    throw new PipeloraError("PL_OUTPUT_UNWRITABLE", `${folder} holds files that no demo wrote`, {
      hint: "Name another folder with --output-dir, or remove this one.",
    });
  await rm(folder, { recursive: true, force: true });
}

function say(text: string): void {
  process.stdout.write(`\n── ${text}\n`);
}
