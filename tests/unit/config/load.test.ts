import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { parseCoordinator } from "../../../src/cli/parse.ts";
import { PipeloraError } from "../../../src/common/errors.ts";
import { loadConfig } from "../../../src/config/load.ts";
import { OPTIONS, withoutSecrets } from "../../../src/config/options.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";

const needed = { model: "m", dataset: "d", output_dir: "o" };

async function problem(flags: Record<string, string | boolean>): Promise<string> {
  try {
    await loadConfig("train", { ...needed, ...flags });
  } catch (error) {
    assert.equal((error as PipeloraError).code, "PL_CONFIG_INVALID");
    return (error as PipeloraError).message;
  }
  throw new Error("nothing was refused");
}

test("defaults are those of TrainingArguments and LoraConfig", async () => {
  const config = await loadConfig("train", needed);
  assert.equal(config.per_device_train_batch_size, 8);
  assert.equal(config.num_train_epochs, 3);
  assert.equal(config.learning_rate, 5e-5);
  assert.equal(config.lora_r, 8);
  assert.equal(config.max_grad_norm, 1);
  assert.equal(config.seed, 42);
});

test("flags win over the YAML file, whose keys are in snake_case", async (t) => {
  const path = join(temporaryFolder(t), "run.yaml");
  writeFileSync(path, "model: a\ndataset: b\noutput_dir: c\nlora_r: 16\ntarget_modules: [w1, w2]\nmax_new_tokens: 5\n");
  const config = await loadConfig("train", { config: path, lora_r: "4", lora_dropout: "0.1" });
  assert.deepEqual([config.model, config.lora_r, config.lora_dropout], ["a", 4, 0.1]);
  assert.deepEqual(config.target_modules, ["w1", "w2"]);
});

test("lists, JSON and booleans are parsed", async () => {
  const config = await loadConfig("train", {
    ...needed,
    target_modules: "c_attn,w1",
    max_memory: '{"0": "1GiB"}',
    gradient_checkpointing: true,
    resume_from_checkpoint: "x/checkpoint-3",
    use_rslora: "False",
  });
  assert.deepEqual(config.target_modules, ["c_attn", "w1"]);
  assert.deepEqual(config.max_memory, { "0": "1GiB" });
  assert.equal(config.gradient_checkpointing, true);
  assert.equal(config.resume_from_checkpoint, "x/checkpoint-3");
  assert.equal(config.use_rslora, false);
});

test("a list is given by one name alone too, whichever flag it is of", async () => {
  const lists = Object.entries(OPTIONS).filter(
    ([, { kind, commands }]) => kind === "list" && commands.includes("train"),
  );
  assert.ok(lists.length > 5);
  for (const [key] of lists) {
    const taken = await loadConfig("train", { ...needed, [key]: "one" }).catch((error: unknown) => error);
    if (taken instanceof PipeloraError) assert.doesNotMatch(taken.message, /\barray\b|\ba list\b/, key);
    else assert.deepEqual((taken as unknown as Record<string, unknown>)[key], ["one"], key);
  }
});

test("every problem is named at once, with a suggestion for a typo", async () => {
  const message = await problem({ lora_rr: "8", learning_rate: "fast", lora_dropout: "1.5" });
  assert.match(message, /unknown flag --lora-rr; did you mean --lora-r\?/);
  assert.match(message, /--learning-rate: expected a number, got "fast"/);
  assert.match(message, /--lora-dropout/);
});

test("a flag of another command is told from a typo", async () => {
  const message = (...argv: string[]) =>
    parseCoordinator(argv).then(
      () => "accepted",
      (error: Error) => error.message,
    );
  assert.match(await message("generate", "--devices", "cpu"), /--devices is no flag of `generate`, but of plan/);
  assert.match(await message("--prompt", "x"), /--prompt is no flag of `train`, but of .*generate/);
  assert.match(await message("generate", "--promt", "x"), /did you mean --prompt\?/);
});

test("contradictions are refused", async () => {
  assert.match(await problem({ adapter: "a", lora_r: "8" }), /--lora-r contradicts --adapter/);
  assert.match(await problem({ eval_strategy: "steps" }), /--eval-strategy needs/);
  assert.match(await problem({ nnodes: "2" }), /--nnodes above 1 needs --listen/);
  assert.match(await problem({ lr_scheduler_type: "constant", warmup_steps: "5" }), /constant has no warm-up/);
});

test("links carry what they can, and promise no bits that rounding breaks", async () => {
  const train = (flags: Record<string, string | boolean>) => loadConfig("train", { ...needed, ...flags });
  assert.equal((await train({})).link_dtype, "auto");
  for (const link_dtype of ["bfloat16", "float8_e4m3fn"]) {
    assert.equal((await train({ link_dtype })).link_dtype, link_dtype);
    assert.match(
      await problem({ link_dtype, deterministic_batches: true }),
      new RegExp(`--deterministic-batches does not go with --link-dtype ${link_dtype}: .*where stages end`),
    );
  }
  await train({ link_dtype: "auto", deterministic_batches: true });
  for (const link_dtype of ["float8_e5m2", "float16", "fp8", ""])
    assert.match(await problem({ link_dtype }), /--link-dtype.*float8_e4m3fn/);
});

test("nothing listens beyond loopback in plain text unasked", async () => {
  assert.match(await problem({ listen: "0.0.0.0:7000" }), /0\.0\.0\.0:7000 is beyond loopback.*--insecure/);
  await loadConfig("train", { ...needed, listen: "0.0.0.0:7000", insecure: true });
  await loadConfig("train", { ...needed, listen: "127.0.0.1:7000" });
  await assert.rejects(loadConfig("worker", { coordinator: "10.0.0.1:7000" }), /beyond loopback/);
});

test("the API stays on loopback unless it speaks TLS, and its flags act or are refused", async () => {
  const serve = (flags: Record<string, string | boolean>) => loadConfig("serve", { model: "m", ...flags });
  await assert.rejects(
    serve({ http: "0.0.0.0:80" }),
    /--http 0\.0\.0\.0:80 is beyond loopback.*--http-tls-cert.*--insecure/,
  );
  await serve({ http: "[::1]:80" });
  await serve({ http: "0.0.0.0:80", insecure: true });
  await serve({ http: "0.0.0.0:80", http_tls_cert: "a", http_tls_key: "b" });
  await assert.rejects(serve({ http: "8000" }), /--http: expected HOST:PORT/);
  await assert.rejects(serve({ http_tls_cert: "a" }), /go together/);
  await assert.rejects(serve({ api_key: "a", api_key_file: "b" }), /contradict each other/);
  await assert.rejects(loadConfig("serve", {}), /--model is required for `serve`/);
  assert.match(await problem({ http: "0.0.0.0:80" }), /beyond loopback/);
  assert.match(await problem({ api_key_file: "f" }), /--api-key-file acts only with --http/);
  assert.match(await problem({ max_num_seqs: "4" }), /--max-num-seqs acts only with --http or --sample-prompts/);
  assert.match(await problem({ sample_prompts: "p" }), /give --eval-strategy/);
  const generate = (flags: Record<string, string>) => loadConfig("generate", { model: "m", ...flags });
  await assert.rejects(generate({ prompt: "x", max_num_seqs: "4" }), /acts only with --input/);
  await assert.rejects(generate({ input: "a" }), /--input and --output go together/);
  await assert.rejects(generate({ input: "a", output: "b", prompt: "x" }), /takes one of/);
  await generate({ input: "a", output: "b", max_num_seqs: "4" });
});

test("a key for the API comes from the environment too, and goes into no file", async () => {
  process.env["PIPELORA_API_KEY"] = "secret";
  try {
    const config = await loadConfig("serve", { model: "m" });
    assert.equal(config.api_key, "secret");
    assert.ok(!JSON.stringify(withoutSecrets(config)).includes("secret"));
  } finally {
    delete process.env["PIPELORA_API_KEY"];
  }
});

test("a flag that may stand again is joined; of others the last counts", async () => {
  const parsed = await parseCoordinator(["serve", "--model", "m", "--adapter", "a=x", "--adapter", "b=y/z"]);
  assert.equal(parsed!.config.adapter, "a=x,b=y/z");
  const given = ["--model", "m", "--dataset", "d", "--output-dir", "o", "--adapter", "first", "--adapter", "last"];
  assert.equal((await parseCoordinator(given))!.config.adapter, "last");
});

test("what a command needs is asked for", async () => {
  await assert.rejects(
    loadConfig("train", {}),
    /--model is required.*\n.*--dataset is required.*\n.*--output-dir is required/,
  );
});

test("a number of epochs that no run could finish is refused", async () => {
  assert.match(await problem({ num_train_epochs: "1e300" }), /num.train.epochs/);
});
