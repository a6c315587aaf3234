// On a host with two GPUs or more: a pipeline over them, by every kind of link, and with a head that two share, ends with the bits of one GPU; two replicas end
// within rounding of it; a rank killed over NCCL costs steps, not the run. Prints a line a check; exits 1 if one fails.
import { spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
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

/** A run to its end; `onOutput` sees standard output as it comes. */
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
      const read = () => readFileSync(join(output, "adapter_model.safetensors"));
      resolve({ code, stderr, stdout, losses, adapter: code === 0 ? read() : null });
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

for (const dtype of ["float32", "bfloat16"]) {
  const fixed = ["--compute-dtype", dtype, "--deterministic-batches", "--device-map", "balanced"];
  const one = await run(`one-${dtype}`, [...fixed, "--max-memory", '{"0": "60GiB"}']);
  check(`one GPU, ${dtype}`, one.code === 0, one.stderr.slice(-800));
  for (const link of ["nccl", "shm", "grpc"]) {
    const two = await run(`${link}-${dtype}`, [...fixed, "--link", link]);
    const used = JSON.stringify(events(two.stdout, "plan")).includes(`"${link}"`);
    const same = two.adapter !== null && Buffer.compare(two.adapter, one.adapter) === 0;
    check(`all GPUs over ${link}, ${dtype}: the bits of one`, two.code === 0 && used && same, two.stderr.slice(-800));
  }
  for (const schedule of ["1f1b", "interleaved"]) {
    const layers = Array.from({ length: shape.blocks }, (_, block) => [
      `model.layers.${block}`,
      schedule === "1f1b" ? Number(2 * block >= shape.blocks) : block % 2,
    ]);
    const map = { "": 0, ...Object.fromEntries(layers), "model.norm": [1, 0], lm_head: [1, 0] };
    const flags = ["--link", "nccl", "--schedule", schedule, "--device-map", JSON.stringify(map)];
    const two = await run(`shared-${schedule}-${dtype}`, [...fixed, ...flags]);
    const same = two.adapter !== null && Buffer.compare(two.adapter, one.adapter) === 0;
    check(
      `a head that two GPUs share, ${schedule}, ${dtype}: the bits of one`,
      two.code === 0 && same,
      two.stderr.slice(-800),
    );
  }
  // Each replica has half of a step's rows.
  const halves = ["--link", "nccl", "--replicas", "2", "--per-device-train-batch-size", "4"];
  const replicas = await run(`replicas-${dtype}`, [...fixed, ...halves]);
  const worst = Math.max(...replicas.losses.map((loss, step) => Math.abs(loss / one.losses[step] - 1)));
  const limit = dtype === "float32" ? 1e-5 : 1e-2;
  check(
    `two replicas over nccl, ${dtype}: losses within ${limit}`,
    replicas.code === 0 && worst <= limit,
    `${worst} ${replicas.stderr.slice(-800)}`,
  );
}

const nccl = ["--compute-dtype", "float32", "--device-map", "balanced", "--deterministic-batches", "--link", "nccl"];
let workers = [];
const disturbed = await run("disturbed", nccl, (stdout, pid) => {
  if (workers.length > 0 || !stdout.includes('"step":7,')) return;
  workers = children(pid);
  process.kill(workers.at(-1), "SIGKILL");
});
const calm = await run("calm", nccl);
const same = disturbed.adapter !== null && Buffer.compare(disturbed.adapter, calm.adapter) === 0;
check(
  "a rank killed over nccl: the run goes on from its checkpoint to the same bits",
  disturbed.code === 0 && same,
  disturbed.stderr.slice(-600),
);
const alive = workers.filter((pid) => {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
});
check("no process of it is left", workers.length > 0 && alive.length === 0, alive.join());
process.exitCode = failed === 0 ? 0 : 1;
