// Many clients at once against `coordinator serve`, with a worker killed on the way: every answer is known, so each is right, a clear error,
// or counted as wrong. Prints one JSON line of figures. Usage:
//   node --import tsx scripts/load-serve.ts [--clients N] [--seconds S] [--workers N] [--kill-at S]
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import OpenAI, { APIError } from "openai";
import { digitsAfter, writeChainModel } from "../tests/support/models/chain-model.ts";
import { childrenOf } from "../tests/support/processes/processes.ts";
import { startServer } from "../tests/support/processes/server.ts";

const { values } = parseArgs({
  options: {
    clients: { type: "string", default: "64" },
    seconds: { type: "string", default: "120" },
    workers: { type: "string", default: "2" },
    "kill-at": { type: "string", default: "60" },
  },
});
const clients = Number(values.clients);
const seconds = Number(values.seconds);

/** Resident memory of a process, in MiB. */
function residentMiB(pid: number): number {
  try {
    return Math.round(Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0) / 1024);
  } catch {
    return 0;
  }
}

interface Tally {
  right: number;
  wrong: number;
  tokens: number;
  errors: Record<string, number>;
}

/** One client after another request until the time is over; a stream every third time, one that leaves every seventh. */
async function talk(client: OpenAI, until: number, own: number, tally: Tally): Promise<void> {
  for (let turn = 0; performance.now() < until; turn++) {
    const digit = (own + turn) % 10;
    const count = 20 + ((own * 37 + turn * 11) % 100);
    const request = { model: "m", prompt: String(digit), temperature: 0, max_tokens: count };
    try {
      let text = "";
      if (turn % 7 === 6) {
        const stream = await client.completions.create({ ...request, stream: true });
        for await (const { choices } of stream) {
          text += choices[0]!.text;
          if (text.length > 10) break;
        }
        stream.controller.abort();
        if (!digitsAfter(digit, count).startsWith(text)) tally.wrong++;
        continue;
      }
      if (turn % 3 === 0) {
        for await (const { choices } of await client.completions.create({ ...request, stream: true }))
          text += choices[0]!.text;
      } else {
        text = (await client.completions.create(request)).choices[0]!.text;
      }
      if (text === digitsAfter(digit, count)) {
        tally.right++;
        tally.tokens += count;
      } else tally.wrong++;
    } catch (error) {
      const what = error instanceof APIError ? `${error.status} ${error.code}` : String(error);
      tally.errors[what] = (tally.errors[what] ?? 0) + 1;
      const again = error instanceof APIError ? Number(error.headers?.get("retry-after") ?? 1) : 1;
      await new Promise((resolve) => setTimeout(resolve, Math.min(2, again) * 1000));
    }
  }
}

async function measure(client: OpenAI, count: number, lasting: number) {
  const tally: Tally = { right: 0, wrong: 0, tokens: 0, errors: {} };
  const started = performance.now();
  await Promise.all(Array.from({ length: count }, (_, own) => talk(client, started + lasting * 1000, own, tally)));
  const took = (performance.now() - started) / 1000;
  return {
    clients: count,
    seconds: Number(took.toFixed(1)),
    ...tally,
    tokens_per_s: Number((tally.tokens / took).toFixed(1)),
  };
}

const dir = mkdtempSync(join(tmpdir(), "pipelora-load-"));
try {
  await writeChainModel(dir, 4);
  const server = await startServer([
    ...["--model", dir, "--workers", values.workers, "--served-model-name", "m", "--max-num-seqs", "32"],
    ...["--kv-cache-tokens", "8192", "--max-concurrent-requests", "48", "--log-level", "warn"],
  ]);
  const client = new OpenAI({ apiKey: "none", baseURL: `${server.url}/v1`, maxRetries: 0 });
  const alone = await measure(client, 1, Math.min(10, seconds / 4));
  const memory: number[] = [];
  const watch = setInterval(() => memory.push(residentMiB(server.pid)), 1000);
  const kill = setTimeout(() => process.kill(childrenOf(server.pid)[0]!, "SIGKILL"), Number(values["kill-at"]) * 1000);
  const together = await measure(client, clients, seconds);
  clearInterval(watch);
  clearTimeout(kill);
  const quarter = Math.max(1, Math.floor(memory.length / 4));
  const code = await server.stop();
  const figures = {
    ...{ alone, together, restarts: (server.log().match(/loading the model anew/g) ?? []).length, exit: code },
    coordinator_mib: { after_a_quarter: memory[quarter], at_the_end: memory.at(-1), most: Math.max(...memory) },
  };
  process.stdout.write(`${JSON.stringify(figures)}\n`);
  process.exitCode = together.wrong + alone.wrong === 0 ? 0 : 1;
} finally {
  rmSync(dir, { recursive: true, force: true });
}
