// Runs commands side by side and shows the output of each when it has ended.
import { spawn } from "node:child_process";
import { root } from "./lib.mjs";

/** No job takes this long. One that does is killed, and counts as failed. */
const DEADLINE_MS = 15 * 60_000;

/**
 * @typedef {object} Job
 * @property {string} name
 * @property {string[]} command
 * @property {string[]} [needs] Names of jobs that must have succeeded before. If one fails, this job is not run and counts as failed.
 * @property {string} [lane] Jobs with the same lane never run at the same time.
 * @property {boolean} [beside] Runs as soon as it can, and counts as none of the jobs that run at a time.
 * @property {(output: string) => string | null} [check] What is wrong with the output of a command that succeeded; null: nothing.
 *
 * @typedef {object} Ended
 * @property {string} name
 * @property {number} seconds
 * @property {string | null} wrong Null: it succeeded.
 * @property {string} output
 */

/**
 * Runs jobs in their order, `slots` at a time. Resolves with all of them, in the order in which they ended. A signal that ends this process
 * ends them too.
 * @param {readonly Job[]} jobs
 * @param {number} slots
 * @param {{ deadlineMs?: number, show?: (text: string) => void }} options `show` takes the output of each job.
 * @returns {Promise<Ended[]>}
 */
export async function runJobs(jobs, slots, { deadlineMs = DEADLINE_MS, show = print } = {}) {
  const waiting = new Set(jobs);
  /** @type {Map<Job, ReturnType<typeof start>>} */
  const running = new Map();
  /** @type {Ended[]} */
  const ended = [];
  const stop = (signal) => {
    for (const { kill } of running.values()) kill();
    process.exit(signal === "SIGINT" ? 130 : 143);
  };
  for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, stop);
  const succeeded = (name) => ended.some((one) => one.name === name && one.wrong === null);
  const failed = (name) => ended.find((one) => one.name === name && one.wrong !== null);
  const finish = (one) => {
    ended.push(one);
    const how = one.wrong === null ? "" : `: ${one.wrong}`;
    show(`\n== ${one.name} (${one.seconds.toFixed(1)} s)${how}\n${one.output}`);
  };
  for (;;) {
    for (const job of waiting) {
      const missing = job.needs?.find((name) => failed(name));
      if (missing !== undefined) {
        waiting.delete(job);
        finish({ name: job.name, seconds: 0, wrong: `not run, because this failed: ${missing}`, output: "" });
        continue;
      }
      const taken = [...running.keys()].filter(({ beside }) => beside !== true).length;
      const free = job.beside === true || taken < slots;
      const alone = job.lane === undefined || ![...running.keys()].some(({ lane }) => lane === job.lane);
      if (!free || !alone || !(job.needs ?? []).every(succeeded)) continue;
      waiting.delete(job);
      running.set(job, start(job, deadlineMs));
    }
    if (running.size === 0) break;
    const [job, one] = await Promise.race([...running].map(async ([job, { end }]) => [job, await end]));
    running.delete(job);
    finish(one);
  }
  for (const signal of ["SIGINT", "SIGTERM"]) process.removeListener(signal, stop);
  for (const { name, needs } of waiting) throw new Error(`${name} waits for jobs that do not exist: ${needs}`);
  return ended;
}

/** @param {string} text */
function print(text) {
  process.stdout.write(text);
}

/**
 * @param {Job} job
 * @param {number} deadlineMs
 */
function start({ name, command: [program, ...args], check }, deadlineMs) {
  const began = Date.now();
  // A process group of its own, so that nothing that the command started outlives it.
  // Without what tells node:test that another runner reads its output: a job may run tests even where a test runs the job.
  const env = { ...process.env, NODE_TEST_CONTEXT: undefined };
  const child = spawn(program, args, { cwd: root, env, stdio: ["pipe", "pipe", "pipe"], detached: true });
  const kill = () => {
    try {
      process.kill(-child.pid, "SIGKILL");
    } catch {
      // It has ended.
    }
  };
  let output = "";
  let late = false;
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8");
    stream.on("data", (text) => {
      output += text;
    });
  }
  const deadline = setTimeout(() => {
    late = true;
    kill();
  }, deadlineMs);
  /** @type {Promise<Ended>} */
  const end = new Promise((resolve) => {
    const done = (wrong) => {
      clearTimeout(deadline);
      resolve({ name, seconds: (Date.now() - began) / 1000, wrong, output });
    };
    child.on("error", (error) => done(`${program} could not be started: ${error.message}`));
    child.on("close", (code, signal) => {
      if (late) done(`killed after ${deadlineMs / 1000} s`);
      else if (code !== 0) done(`ended with ${signal ?? code}`);
      else done(check?.(output) ?? null);
    });
  });
  return { end, kill };
}

/** Says how the jobs ended, and ends this process with 1 if one failed. `tell`: further lines. */
export function reportJobs(ended, tell = []) {
  const failures = ended.filter(({ wrong }) => wrong !== null);
  const slowest = [...ended].sort((a, b) => b.seconds - a.seconds).slice(0, 8);
  const lines = [
    `slowest: ${slowest.map(({ name, seconds }) => `${name} ${seconds.toFixed(0)} s`).join(", ")}`,
    ...tell,
    ...failures.map(({ name, wrong }) => `FAILED ${name}: ${wrong}`),
  ];
  process.stdout.write(`\n${lines.join("\n")}\n`);
  if (failures.length > 0) process.exit(1);
}
