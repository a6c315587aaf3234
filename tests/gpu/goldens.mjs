// Golden runs through the command line on a GPU: one worker, then two sharing the card. Exits 1 if a number is off.
// usage: goldens.mjs [NAME …]   (all of them without a name)
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));
const goldens = join(root, "tests", "fixtures", "goldens");
const program = (name) => join(root, "dist", "cli", `${name}.js`);
const folder = mkdtempSync(join(tmpdir(), "pipelora-gpu-"));
let failed = false;

function flags(name, output, more) {
  const expected = JSON.parse(readFileSync(join(goldens, name, "expected.json"), "utf8"));
  const args = Object.entries(expected.trainer_args).flatMap(([key, value]) => [
    `--${key.replaceAll("_", "-")}`,
    typeof value === "object" ? JSON.stringify(value) : String(value),
  ]);
  const run = join(goldens, name);
  return [
    ...["--model", join(run, "model"), "--dataset", join(run, "data.jsonl"), "--adapter", join(run, "adapter_init")],
    ...["--output-dir", output, "--train-sampling-strategy", expected.sequential ? "sequential" : "random"],
    ...[...args, "--compute-dtype", "float32", "--torch-dtype", "float32", "--log-level", "warn", "--json", ...more],
    // One worker and two are cut alike.
    "--deterministic-batches",
  ];
}

function check(label, name, stdout, tolerance) {
  const { log_history: history } = JSON.parse(readFileSync(join(goldens, name, "expected.json"), "utf8"));
  const events = stdout
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line));
  const logs = events.filter(({ event }) => event === "log");
  const far = (key) =>
    Math.max(...history.slice(0, -1).map((entry, i) => Math.abs(logs[i]?.[key] - entry[key]) / entry[key]));
  const [loss, norm] = [far("loss"), far("grad_norm")];
  const good = loss < tolerance;
  failed ||= !good;
  const plan = events.find(({ event }) => event === "plan")?.plan;
  console.log(
    `${good ? "ok" : "FAILED"} ${label} ${name}: loss within ${loss.toExponential(1)}, norm within ${norm.toExponential(1)}, ${plan?.devices?.length} device(s)`,
  );
}

const adapter = (output) => readFileSync(join(output, "adapter_model.safetensors"));

// Every golden run that is a training; 4-bit weights are rounded otherwise on a GPU.
const wanted = process.argv.slice(2);
const RUNS = (wanted.length > 0 ? wanted : readdirSync(goldens))
  .filter((name) => existsSync(join(goldens, name, "expected.json")))
  .map((name) => ({ name, expected: JSON.parse(readFileSync(join(goldens, name, "expected.json"), "utf8")) }))
  .filter(({ expected }) => expected.trainer_args !== undefined)
  .map(({ name, expected }) => [name, expected.quantization === null ? 1e-4 : 1e-3]);
for (const [name, tolerance] of RUNS) {
  const quantised =
    name === "qwen1-nf4" ? ["--load-in-4bit", "--bnb-4bit-quant-type", "nf4", "--bnb-4bit-use-double-quant"] : [];
  const one = join(folder, `${name}-1`);
  const alone = spawnSync(process.execPath, [program("coordinator"), ...flags(name, one, quantised)], {
    encoding: "utf8",
  });
  if (alone.status !== 0) {
    console.log(`FAILED one worker ${name}: ${alone.stderr.slice(-800)}`);
    failed = true;
    continue;
  }
  check("one worker", name, alone.stdout, tolerance);

  const two = join(folder, `${name}-2`);
  const port = 20000 + (process.pid % 20000);
  const listen = ["--listen", `127.0.0.1:${port}`, "--device-map", "balanced", ...quantised];
  const worker = spawn(
    process.execPath,
    [program("worker"), "--coordinator", `127.0.0.1:${port}`, "--devices", "cuda:0,cuda:0", "--log-level", "warn"],
    { stdio: "inherit" },
  );
  const shared = spawnSync(process.execPath, [program("coordinator"), ...flags(name, two, listen)], {
    encoding: "utf8",
  });
  worker.kill("SIGTERM");
  if (shared.status !== 0) {
    console.log(`FAILED two workers ${name}: ${shared.stderr.slice(-800)}`);
    failed = true;
    continue;
  }
  check("two workers", name, shared.stdout, tolerance);
  const same = Buffer.compare(adapter(one), adapter(two)) === 0;
  failed ||= !same;
  console.log(`${same ? "ok" : "FAILED"} ${name}: one worker and two end with ${same ? "the same" : "other"} bits`);
}
process.exit(failed ? 1 : 0);
