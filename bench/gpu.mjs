// Plain Node on purpose: a GPU machine may have no npm. There: node bench/gpu.mjs [--peer] [--rows NAME,…] [--program FILE]
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const PROGRAM = join(root, "build", "native", "ops", "cuda", "cuda_step");
const PEER = join(root, "bench", "peer_gpu.py");

const rate = (tokensPerSecond, GiB = null) => ({ tokensPerSecond, GiB });
const unsloth = (tokensPerSecond, GiB) => ({ name: "Unsloth 2026.8", tokensPerSecond, GiB });

/**
 * What each row is held against: peers on one H100 80 GB at the same shape, measured 2026-11-24 (HF: transformers 5.17, peft 0.21,
 * bitsandbytes 0.50, dropout 0.1; Unsloth without dropout, its fast path).
 */
export const GPU_ROWS = [
  {
    row: "tutorial-on",
    name: "nf4, tutorial rows, checkpointing",
    target: rate(12000, 6.3),
    hf: rate(874, 8.4),
    best: unsloth(1224, 6.3),
  },
  {
    row: "tutorial-off",
    name: "nf4, tutorial rows",
    target: rate(15000, 8.5),
    hf: rate(1704, 18),
    best: unsloth(2321, 8.5),
  },
  {
    row: "8x384-on",
    name: "nf4, 8 × 384, checkpointing",
    target: rate(13500, 7.5),
    hf: rate(4989, 11.8),
    best: unsloth(9798, 7.8),
  },
  {
    row: "8x384-off",
    name: "nf4, 8 × 384",
    target: rate(19000, 17),
    hf: rate(8460, 32.9),
    best: unsloth(14428, 17.8),
  },
  {
    row: "4x2048-on",
    name: "nf4, 4 × 2048, checkpointing",
    target: rate(13500, 7.5),
    hf: rate(7429, 21.8),
    best: unsloth(10235, 7.6),
  },
  { row: "4x2048-off", name: "nf4, 4 × 2048", target: rate(19000, 33), hf: null, best: unsloth(14426, 34.2) },
  {
    row: "1x8192-on",
    name: "nf4, 1 × 8192, checkpointing",
    target: rate(12500, 8),
    hf: rate(6811, 21.8),
    best: null,
  },
  {
    row: "int8-8x384-on",
    name: "int8, 8 × 384, checkpointing",
    target: rate(12000, 12),
    hf: rate(3027, 26.6),
    best: null,
  },
  {
    row: "bf16-8x384-off",
    name: "bf16, 8 × 384",
    target: rate(21000, 27),
    hf: rate(9191, 41.9),
    best: { name: "HF with a compiled layer", tokensPerSecond: 15223, GiB: 38.4 },
  },
  { row: "decode-1", name: "decode, nf4, batch 1", target: rate(200), hf: rate(11.8), best: null },
];

/** Rows of the peer's own program (a bf16 base) that do the work of one of ours. */
const peerRow = (row) => row.replace(/^(bf16|int8)-/, "");
const PEER_ROWS = ["tutorial-on", "tutorial-off", "8x384-on", "8x384-off", "4x2048-on"];

export async function benchGpu(print, args) {
  const { peer, rows, program } = parse(args);
  if (!existsSync(program)) {
    throw coded(
      "PL_ENGINE_UNAVAILABLE",
      `${program} is not built: the GPU benchmark needs an NVIDIA GPU, and nvcc (CUDA 12 or later) when \`npm run build\` is run. ` +
        "Elsewhere name a program built by native/bench/gpu.sh with --program FILE.",
    );
  }
  const rates = new Map();
  const failures = [];
  const status = await jsonLines(program, rows, (line) => {
    const known = GPU_ROWS.find(({ row }) => row === line.workload);
    if (known === undefined) throw coded(line.error ?? "PL_ENGINE_FAILED", line.message ?? JSON.stringify(line));
    if (line.error !== undefined) {
      failures.push(line);
      print({ row: known.row, error: line.error, message: line.message });
      return;
    }
    rates.set(known.row, line.tokens_per_s);
    print(beside(known, line));
  });
  if (status !== 0 && failures.length === 0) throw coded("PL_ENGINE_FAILED", `${program} ended with status ${status}`);
  if (peer) await besidePeer(print, rows, rates);
  if (failures.length > 0) {
    throw coded(
      failures[0].error,
      `${failures.length} of ${rows.length} rows failed, the first: ${failures[0].message}`,
    );
  }
}

/** The peer in this call, then how many times as fast as it each row was. */
async function besidePeer(print, rows, rates) {
  const theirs = new Map();
  const wanted = PEER_ROWS.filter((name) => rows.some((row) => peerRow(row) === name));
  if (wanted.length === 0) return;
  // A library path for this Node is none for python's packages, which bring their own.
  const { LD_LIBRARY_PATH: _path, ...env } = process.env;
  const take = (line) => {
    theirs.set(line.row, line.tokens_per_s);
    print(line);
  };
  const status = await jsonLines("python3", [PEER, ...wanted], take, env);
  if (status !== 0) throw coded("PL_ENGINE_FAILED", `the peer (python3 ${PEER}) ended with status ${status}`);
  for (const row of rows) {
    const [own, other] = [rates.get(row), theirs.get(peerRow(row))];
    if (own !== undefined && other !== undefined) {
      print({
        row,
        against: "transformers + peft with a bf16 base, in this call",
        ratio: Number((own / other).toFixed(2)),
      });
    }
  }
}

function parse(args) {
  const known = GPU_ROWS.map(({ row }) => row);
  const options = { peer: false, rows: known, program: PROGRAM };
  const rest = [...args];
  while (rest.length > 0) {
    const flag = rest.shift();
    if (flag === "--peer") options.peer = true;
    else if (flag === "--rows" && rest.length > 0) options.rows = rest.shift().split(",");
    else if (flag === "--program" && rest.length > 0) options.program = rest.shift();
    else throw coded("PL_CONFIG_INVALID", `gpu: expected --peer, --rows NAME,… or --program FILE, got "${flag}"`);
  }
  const strange = options.rows.find((row) => !known.includes(row));
  if (strange !== undefined) {
    throw coded("PL_CONFIG_INVALID", `--rows: there is no row "${strange}"; there are ${known.join(", ")}`);
  }
  return options;
}

function beside({ row, name, target, hf, best }, line) {
  const against = best ?? hf;
  return {
    row,
    name,
    ...(line.kept_blocks === undefined
      ? {}
      : {
          kept_blocks: line.kept_blocks,
          offloaded_blocks: line.offloaded_blocks,
          cached_blocks: line.cached_blocks,
          dropout: line.dropout,
        }),
    tokens_per_s: line.tokens_per_s,
    step_ms: line.step_ms ?? Number((1000 / line.tokens_per_s).toFixed(2)),
    peak_GiB: line.peak_GiB ?? null,
    share_of_limit: line.share_of_limit,
    target_tokens_per_s: target.tokensPerSecond,
    target_GiB: target.GiB,
    meets: line.tokens_per_s >= target.tokensPerSecond && (target.GiB === null || line.peak_GiB <= target.GiB),
    hf_tokens_per_s: hf?.tokensPerSecond ?? null,
    hf_GiB: hf?.GiB ?? null,
    best_peer: best?.name ?? null,
    best_peer_tokens_per_s: best?.tokensPerSecond ?? null,
    best_peer_GiB: best?.GiB ?? null,
    times_best_peer: Number((line.tokens_per_s / against.tokensPerSecond).toFixed(2)),
  };
}

/** Runs a program that prints JSON lines, each handed on as it comes; resolves with its status. */
async function jsonLines(command, args, take, env = process.env) {
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "inherit"], env });
  const ended = new Promise((resolve, reject) => {
    child.on("error", (cause) =>
      reject(coded("PL_ENGINE_UNAVAILABLE", `${command} can't be started: ${cause.message}`)),
    );
    child.on("close", (status, signal) => resolve({ status, signal }));
  });
  // Looked at below, after the lines: until then a failure to start must not count as unhandled.
  ended.catch(() => {});
  try {
    for await (const line of createInterface({ input: child.stdout })) {
      if (!line.startsWith("{")) continue;
      take(JSON.parse(line));
    }
  } catch (error) {
    child.kill("SIGKILL");
    throw error;
  }
  const { status, signal } = await ended;
  if (signal !== null) throw coded("PL_ENGINE_FAILED", `${command} was ended by ${signal}`);
  return status;
}

function coded(code, message) {
  return Object.assign(new Error(message), { code });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    await benchGpu((row) => process.stdout.write(`${JSON.stringify(row)}\n`), process.argv.slice(2));
  } catch (error) {
    if (error.code === undefined) throw error;
    process.stderr.write(`${error.code}: ${error.message}\n`);
    process.exitCode = 1;
  }
}
