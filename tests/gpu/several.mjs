// On a host with two GPUs or more: a pipeline over them, by every kind of link, and with a head that two share, ends with the bits of one GPU; two replicas end
// within rounding of it; a rank killed over NCCL costs steps, not the run; a GPU may leave and join an elastic run, and two adapters share a base, with the same bits. Prints a line a check; exits 1 if one fails.
import { spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { events, folder, makeModel, program } from "./runs.mjs";

const shape = { hidden: 512, ffn: 1376, blocks: 6, heads: 8, vocab: 4096 };
const model = makeModel("several", shape, 64, 128);
const settings = [
  ...[...model, "--torch-dtype", "bfloat16", "--lora-dropout", "0.1", "--learning-rate", "1e-3", "--max-steps", "16"],
  ...["--per-device-train-batch-size", "8", "--micro-batch-tokens", "256", "--train-sampling-strategy", "sequential"],
  ...["--overwrite-output-dir", "--save-steps", "4", "--log-level", "warn", "--json"],
];

/**
 * A run to its end; `onOutput` sees standard output as it comes.
 * @param {(stdout: string, pid: number) => void} onOutput
 */
function run(name, flags, onOutput = () => {}) {
  const output = join(folder, name);
  const args = [program("coordinator"), ...settings, ...flags, "--output-dir", output];
  const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "pipe"] });
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (data) => {
    stdout += data;
    onOutput(stdout, child.pid);
  });
  child.stderr.on("data", (data) => {
    stderr += data;
  });
  return new Promise((resolve) => {
    child.on("close", (code) => {
      const losses = events(stdout, "step").map(({ loss }) => loss);
      const file = join(output, "adapter_model.safetensors");
      const adapter = code === 0 && existsSync(file) ? readFileSync(file) : null;
      resolve({ code, stderr, stdout, losses, adapter });
    });
  });
}

let failed = 0;
function check(what, passed, detail = "") {
  console.log(`${passed ? "ok     " : "FAILED "} ${what}${detail === "" ? "" : `: ${detail}`}`);
  if (!passed) failed++;
}

const children = (pid) =>
  readdirSync(`/proc/${pid}/task`).flatMap((task) =>
    readFileSync(`/proc/${pid}/task/${task}/children`, "utf8").trim().split(" ").filter(Boolean).map(Number),
  );

const bits = (one, other) =>
  one.adapter !== null && other.adapter !== null && Buffer.compare(one.adapter, other.adapter) === 0;

/** One GPU, and all over links through the host: they run beside what goes over NCCL. */
async function throughTheHost(dtype, fixed) {
  const one = await run(`one-${dtype}`, [...fixed, "--max-memory", '{"0": "60GiB"}']);
  check(`one GPU, ${dtype}`, one.code === 0, one.stderr.slice(-800));
  for (const link of ["shm", "grpc"]) {
    const two = await run(`${link}-${dtype}`, [...fixed, "--link", link]);
    const used = JSON.stringify(events(two.stdout, "plan")).includes(`"${link}"`);
    check(`all GPUs over ${link}, ${dtype}: the bits of one`, used && bits(two, one), two.stderr.slice(-800));
  }
  return one;
}

/** What goes over NCCL, one run after the other: communicators of several runs would wait for each other on the same GPUs. */
async function overNccl(dtype, fixed) {
  const pipelines = [["all GPUs over nccl", await run(`nccl-${dtype}`, [...fixed, "--link", "nccl"])]];
  for (const schedule of ["1f1b", "interleaved"]) {
    const layers = Array.from({ length: shape.blocks }, (_, block) => [
      `model.layers.${block}`,
      schedule === "1f1b" ? Number(2 * block >= shape.blocks) : block % 2,
    ]);
    const map = { "": 0, ...Object.fromEntries(layers), "model.norm": [1, 0], lm_head: [1, 0] };
    const flags = ["--link", "nccl", "--schedule", schedule, "--device-map", JSON.stringify(map)];
    pipelines.push([
      `a head that two GPUs share, ${schedule}`,
      await run(`shared-${schedule}-${dtype}`, [...fixed, ...flags]),
    ]);
  }
  // Each replica has half of a step's rows.
  const halves = ["--link", "nccl", "--replicas", "2", "--per-device-train-batch-size", "4"];
  return { pipelines, replicas: await run(`replicas-${dtype}`, [...fixed, ...halves]) };
}

for (const dtype of ["float32", "bfloat16"]) {
  const fixed = ["--compute-dtype", dtype, "--deterministic-batches", "--device-map", "balanced"];
  const [one, { pipelines, replicas }] = await Promise.all([throughTheHost(dtype, fixed), overNccl(dtype, fixed)]);
  for (const [what, two] of pipelines)
    check(`${what}, ${dtype}: the bits of one`, bits(two, one), two.stderr.slice(-800));
  const worst = Math.max(...replicas.losses.map((loss, step) => Math.abs(loss / one.losses[step] - 1)));
  const limit = dtype === "float32" ? 1e-5 : 1e-2;
  const right = replicas.code === 0 && worst <= limit;
  check(`two replicas over nccl, ${dtype}: losses within ${limit}`, right, `${worst} ${replicas.stderr.slice(-800)}`);
}

const nccl = ["--compute-dtype", "float32", "--device-map", "balanced", "--deterministic-batches", "--link", "nccl"];
const calm = await run("calm", nccl);
let workers = [];
const disturbed = await run("disturbed", nccl, (stdout, pid) => {
  if (workers.length > 0 || !stdout.includes('"step":7,')) return;
  workers = children(pid);
  process.kill(workers.at(-1), "SIGKILL");
});
check(
  "a rank killed over nccl: the run goes on from its checkpoint to the same bits",
  bits(disturbed, calm),
  disturbed.stderr.slice(-600),
);

// Long enough that a worker, which takes seconds to begin, finds the run on.
const long = [...nccl, "--max-steps", "800", "--save-steps", "1000"];
const elastic = [...long, "--elastic", "--elastic-join", "always", "--min-workers", "1"];
const port = 20000 + (process.pid % 20000);
const gpu = (index) => {
  const name = ["--node-name", `node-${index}`];
  const args = [program("worker"), "--coordinator", `127.0.0.1:${port}`, "--devices", `cuda:${index}`, ...name];
  const child = spawn(process.execPath, [...args, "--log-level", "warn"], { stdio: "inherit" });
  workers.push(child.pid);
  return child;
};
const [, leaves] = [gpu(0), gpu(1)];
let told = 0;
const changed = await run("elastic", [...elastic, "--listen", `127.0.0.1:${port}`, "--nnodes", "2"], (stdout) => {
  if (told === 0 && stdout.includes('"step":4,')) leaves.kill("SIGTERM");
  else if (told === 1 && stdout.includes('"step":8,')) gpu(1);
  else return;
  told++;
});
const changes = events(changed.stdout, "note").filter(({ text }) => / layers were taken over/.test(text));
for (const { text } of changes) console.log(`        ${text}`);
const undisturbed = await run("long", long);
const [left, joined] = changes.map(({ text }) => text.split(" workers go on")[0].split(" ").at(-1));
check("a GPU leaves, one joins", told === 2 && left === "1" && joined === "2", changed.stderr.slice(-600));
check("that run ends with the bits of the undisturbed one", bits(changed, undisturbed));

const adapters = join(folder, "adapters.yaml");
writeFileSync(adapters, "a: {learning_rate: 1.0e-3, lora_r: 4}\nb: {learning_rate: 5.0e-4, lora_r: 16}\n");
const several = await run("several", [...nccl, "--adapters", adapters]);
for (const [name, rate, rank] of [
  ["a", "1.0e-3", "4"],
  ["b", "5.0e-4", "16"],
]) {
  const alone = await run(`alone-${name}`, [...nccl, "--learning-rate", rate, "--lora-r", rank]);
  const own = () => readFileSync(join(folder, "several", name, "adapter_model.safetensors"));
  const same = several.code === 0 && alone.code === 0 && Buffer.compare(own(), alone.adapter) === 0;
  check(`of two adapters over one base, ${name}: the bits of its run alone`, same, several.stderr.slice(-600));
}

// In float16 each has a loss scale: one whose gradients overflow skips steps of its own alone.
const halves = {
  calm: { learning_rate: 1e-3, lora_r: 4 },
  steep: { learning_rate: 1e-4, lora_r: 8, lora_alpha: 512, init_lora_weights: false },
  "dora-steep": { learning_rate: 1e-4, lora_r: 8, lora_alpha: 128, init_lora_weights: false, use_dora: true },
};
writeFileSync(adapters, JSON.stringify(halves));
const half = [...nccl, "--compute-dtype", "float16"];
const halved = await run("halves", [...half, "--adapters", adapters]);
for (const [name, own] of Object.entries(halves)) {
  const flags = Object.entries(own).flatMap(([key, value]) => [`--${key.replaceAll("_", "-")}`, String(value)]);
  const alone = await run(`alone-${name}`, [...half, ...flags]);
  const folderOf = (output, file) => readFileSync(join(folder, output, file));
  const file = "adapter_model.safetensors";
  const same =
    halved.code === 0 && alone.code === 0 && Buffer.compare(folderOf(join("halves", name), file), alone.adapter) === 0;
  const scale = same
    ? JSON.parse(folderOf(join("halves", name), "trainer_state.json").toString()).stateful_callbacks.Pipelora.loss_scale
    : "unknown";
  check(`in float16, ${name}: the bits of its run alone, loss scale ${scale}`, same, halved.stderr.slice(-600));
}

const alive = workers.filter((pid) => {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
});
check("no process of these runs is left", workers.length > 0 && alive.length === 0, alive.join());
process.exitCode = failed === 0 ? 0 : 1;
