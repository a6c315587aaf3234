// What goes wrong around a GPU ends with its code, a message and status above 0, and no process is left: a line a case; exits 1
// if one does not. usage: errors.mjs [cuda_step]. A driver too old for the runtime can't be made here: its message is cuda.cpp's, by version numbers.
import { spawn, spawnSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { coordinator, folder, makeModel, program } from "./runs.mjs";

const model = makeModel("small", { hidden: 1024, ffn: 2816, blocks: 8, heads: 16, vocab: 4096 }, 32, 128);
const output = join(folder, "out");
const flags = [
  ...[...model, "--output-dir", output, "--overwrite-output-dir", "--save-strategy", "no", "--max-steps", "6"],
  ...["--compute-dtype", "bfloat16", "--torch-dtype", "bfloat16", "--log-level", "warn"],
];

function worker(devices, env = {}) {
  const args = [program("worker"), "--coordinator", "127.0.0.1:9", "--devices", devices, "--join-timeout", "1"];
  return spawnSync(process.execPath, args, { encoding: "utf8", env: { ...process.env, ...env } });
}

/** Libraries of cuBLASLt's names that are none, found before the real ones. */
function brokenLibraries() {
  const broken = join(folder, "broken");
  mkdirSync(broken);
  for (const name of ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"])
    writeFileSync(join(broken, name), "none");
  return `${broken}:${process.env.LD_LIBRARY_PATH ?? ""}`;
}

/** Another process that holds all but about 300 MiB of the GPU while `body` runs. */
async function withFullGpu(body) {
  const code = [
    "import torch, sys",
    "free = torch.cuda.mem_get_info()[0]",
    "held = torch.empty(free - (300 << 20), dtype=torch.uint8, device='cuda')",
    "print('held', flush=True); sys.stdin.read()",
  ].join("\n");
  const { LD_LIBRARY_PATH: _path, ...env } = process.env;
  const holder = spawn("python3", ["-c", code], { stdio: ["pipe", "pipe", "inherit"], env });
  await new Promise((resolve, reject) => {
    holder.stdout.once("data", resolve);
    holder.once("exit", (status) => reject(new Error(`the holder of memory ended with ${status}`)));
  });
  try {
    return body();
  } finally {
    holder.stdin.end();
    await new Promise((resolve) => holder.once("exit", resolve));
  }
}

const CASES = [
  {
    name: "no GPU is visible",
    code: "PL_DEVICE_UNAVAILABLE",
    says: /cuda:0 can't be used/,
    run: () => worker("cuda:0", { CUDA_VISIBLE_DEVICES: "-1" }),
  },
  {
    name: "a GPU that is not there",
    code: "PL_DEVICE_UNAVAILABLE",
    says: /cuda:9.*Devices here: cpu, cuda:0/s,
    run: () => worker("cuda:9"),
  },
  {
    name: "cuBLASLt can't be opened",
    code: "PL_DEVICE_UNAVAILABLE",
    says: /libcublasLt\.so\.13 could not be opened/,
    run: () => coordinator(flags, { LD_LIBRARY_PATH: brokenLibraries() }),
  },
  {
    name: "too little memory before anything is loaded: needed, available and what would fit",
    code: "PL_PLACEMENT_INFEASIBLE",
    says: /needed\s+available[\s\S]*short of[\s\S]*What would make it fit/,
    run: () => coordinator([...flags, "--max-memory", '{"0":"900MiB"}']),
  },
  {
    name: "another process holds the GPU's memory, whatever the budget says",
    code: "PL_PLACEMENT_INFEASIBLE",
    says: /needed\s+available[\s\S]*short of/,
    run: () => withFullGpu(() => coordinator([...flags, "--max-memory", '{"0":"20GiB"}'])),
  },
  {
    name: "a loss that overflows: step, row",
    code: "PL_LOSS_NOT_FINITE",
    says: /step \d+/,
    run: () => coordinator([...flags, "--learning-rate", "1e30", "--max-grad-norm", "0"]),
  },
  {
    name: "the same in float16: with the loss scale",
    code: "PL_LOSS_NOT_FINITE",
    says: /loss scale/,
    run: () => coordinator([...flags, "--compute-dtype", "float16", "--learning-rate", "1e30", "--max-grad-norm", "0"]),
  },
];

const [step] = process.argv.slice(2);
if (step !== undefined) {
  CASES.push({
    name: "an allocation in a step: which, and what lies in the arena",
    code: "PL_OUT_OF_MEMORY",
    says: /no room in the arena for [\s\S]*in it lie/,
    run: () => {
      const args = ["--arena-gib", "0.25", "--blocks", "2", "8x384-off"];
      const ended = spawnSync(step, args, { encoding: "utf8" });
      return { ...ended, stderr: ended.stdout };
    },
  });
}

let failed = 0;
for (const { name, code, says, run } of CASES) {
  const { status, signal, stderr } = await run();
  const good = status !== 0 && signal === null && stderr.includes(code) && says.test(stderr);
  if (!good) failed++;
  const shown = good ? stderr.split("\n").find((line) => line.includes(code)) : stderr.slice(-1500);
  console.log(`${good ? "ok" : "FAILED"} ${name} (status ${status}): ${shown?.slice(0, good ? 220 : undefined)}`);
}
process.exitCode = failed === 0 ? 0 : 1;
