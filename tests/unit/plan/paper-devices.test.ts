import assert from "node:assert/strict";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { createLogger } from "../../../src/common/log.ts";
import { loadConfig } from "../../../src/config/load.ts";
import { planWithoutWorkers } from "../../../src/coordinator/planning/plan-on-paper.ts";
import { CATALOGUE, gpuFacts } from "../../../src/plan/paper/catalogue.ts";
import { formatRental } from "../../../src/plan/paper/format-rental.ts";
import { devicesOf, ownGpus, parseDevices, parseLinkRates } from "../../../src/plan/paper/paper-devices.ts";
import { linkKey } from "../../../src/plan/request.ts";
import { planPage } from "../../../src/plan/shown/plan-page.ts";
import { temporaryFolder } from "../../support/processes/cli.ts";

const LOG = createLogger({ format: "text", level: "silent", fields: {} });
const NONE = new Map<string, never>();

/** A 7B model of which only the configuration is there. */
function model(root: string): string {
  const dir = join(root, "7b");
  mkdirSync(dir, { recursive: true });
  const sizes = { hidden_size: 3584, intermediate_size: 18944, num_hidden_layers: 28, num_attention_heads: 28 };
  const config = { model_type: "qwen2", ...sizes, num_key_value_heads: 4, vocab_size: 152064, torch_dtype: "bfloat16" };
  writeFileSync(join(dir, "config.json"), JSON.stringify(config));
  return dir;
}

const plan = async (root: string, flags: Readonly<Record<string, string | boolean>>) => {
  const config = await loadConfig("plan", { model: model(root), load_in_4bit: true, max_length: "384", ...flags });
  return planWithoutWorkers(config, [{ name: null, config }], LOG);
};

test("GPUs by number, name and node; rates of links, in every unit", () => {
  const groups = parseDevices(["2x rtx-4090", " A100-80GB@node-b ", "3 x t4 @ c.1"], NONE);
  assert.deepEqual(
    groups.map(({ count, gpu, node }) => [count, gpu.id, node]),
    [
      [2, "rtx-4090", "node-a"],
      [1, "a100-80gb", "node-b"],
      [3, "t4", "c.1"],
    ],
  );
  assert.deepEqual(
    devicesOf(groups).map(({ id, node }) => `${id} ${node}`),
    ["0 node-a", "1 node-a", "2 node-b", "3 c.1", "4 c.1", "5 c.1"],
  );
  const rate = (text: string) => parseLinkRates(text, groups).get(linkKey("node-a", "node-b"))?.bytesPerSecond;
  assert.equal(rate("node-a,node-b=10GbE"), 1.1e9);
  assert.equal(rate("node-b , node-a = 25 Gbit/s"), 2.75e9);
  assert.equal(rate("node-a,node-b=3.5GB/s; node-a,c.1=1GbE"), 3.5e9);
  assert.equal(rate(""), undefined);
  // Within a node: what the slower card's bus carries, unless it is said.
  const within = (text: string | null) => parseLinkRates(text, groups).get(linkKey("node-a", "node-a"))?.bytesPerSecond;
  assert.equal(within(null), 22e9);
  assert.equal(within("node-a,node-a=50GB/s"), 50e9);
});

test("what is no GPU, no node, no rate: said, with what there is", () => {
  const bad = (entries: readonly string[], message: RegExp) =>
    assert.throws(
      () => parseDevices(entries, NONE),
      (error: { code: string; message: string; hint: string }) => {
        assert.equal(error.code, "PL_CONFIG_INVALID");
        assert.match(`${error.message} ${error.hint}`, message);
        return true;
      },
    );
  bad(["2x rtx-4091"], /"rtx-4091" is no GPU.*Did you mean rtx-4090/);
  bad(["0x t4"], /expected a count and a kind of GPU/);
  bad(["t4 @"], /expected a count and a kind of GPU/);
  bad(["cuda:0"], /expected a count and a kind of GPU/);
  bad(["999x t4", "26x t4"], /1025 GPUs/);
  const groups = parseDevices(["2x t4", "t4 @ b"], NONE);
  for (const text of ["node-a,c=10GbE", "node-a=10GbE", "node-a,b=fast", "node-a,b=0GbE", "node-a,b=10"]) {
    assert.throws(() => parseLinkRates(text, groups), { code: "PL_CONFIG_INVALID" }, text);
  }
  for (const entry of [
    { memory: "x", tflops: 1, bandwidth: 1 },
    { tflops: 1, bandwidth: 1 },
    { memory: "1GiB", tflops: -1, bandwidth: 1 },
    { memory: "1GiB", tflops: 1, bandwidth: 1, colour: 1 },
  ]) {
    assert.throws(() => ownGpus("own.yaml", { mine: entry }), { code: "PL_CONFIG_INVALID" }, JSON.stringify(entry));
  }
});

test("every entry is found by the name that its driver gives, and has plausible numbers", () => {
  for (const gpu of CATALOGUE) {
    const found = gpuFacts({ name: gpu.name });
    assert.deepEqual([found.products, found.bandwidth], [gpu.products, gpu.bandwidth], gpu.name);
    assert.ok(
      gpu.productsFloat32 < gpu.products && gpu.memoryBytes > 14e9 && gpu.source.startsWith("https://"),
      gpu.id,
    );
  }
  assert.equal(new Set(CATALOGUE.map(({ id }) => id)).size, CATALOGUE.length);
});

test("more or faster GPUs and links never make the fastest plan slower; times are for those named", async (t) => {
  const root = temporaryFolder(t);
  const step = async (devices: string, more: Readonly<Record<string, string>> = {}) => {
    const paper = await plan(root, { devices, device_map: "fastest", ...more });
    return paper.plan.predicted!.stepTimeMs;
  };
  const one = await step("rtx-4090");
  assert.ok((await step("2x rtx-4090")) < one);
  assert.ok((await step("rtx-3090")) > one);
  const [slow, fast] = [
    await step("t4,t4 @ b", { link: "node-a,b=1GbE" }),
    await step("t4,t4 @ b", { link: "node-a,b=100GbE" }),
  ];
  assert.ok(fast <= slow, `${fast} ${slow}`);
  const { timesFor, plan: own, links } = await plan(root, { devices: "2x t4" });
  assert.equal(timesFor, "2 × Tesla T4");
  assert.ok(own.devices.every(({ memory }) => memory.budget > 13e9 && memory.budget < 15 * 2 ** 30));
  assert.ok(links.every(({ kind }) => kind === "nccl"));
  assert.match(
    (await plan(root, { workers: "2", max_memory: '{"0": "40GiB", "1": "40GiB"}' })).timesFor,
    /^2 × CPU worker of this machine/,
  );
});

test("the cheapest set that is done in time: brute force over what the sets say, with prices of a file too", async (t) => {
  const root = temporaryFolder(t);
  const gpus = join(root, "gpus.yaml");
  writeFileSync(gpus, "mine:\n  memory: 12GiB\n  tflops: 60\n  bandwidth: 500\n  price: 0.1\n");
  const devices = "2x rtx-4090,mine @ b";
  const flags = { devices, gpus, prices: '{"rtx-4090": 0.5}', max_steps: "20000" };
  const all = (await plan(root, flags)).rental!;
  assert.equal(all.sets.length, 5);
  for (const { seconds, cost, counts, plan: own } of all.sets) {
    assert.equal(seconds, (20000 * own!.predicted!.stepTimeMs) / 1000);
    assert.ok(Math.abs(cost! - ((counts[0]! * 0.5 + counts[1]! * 0.1) * seconds!) / 3600) < 1e-9);
  }
  const times = all.sets.map(({ seconds }) => seconds!).sort((a, b) => a - b);
  const deadline = Math.ceil((times[1]! + times[2]!) / 2);
  const { sets } = (await plan(root, { ...flags, deadline: `${deadline}s` })).rental!;
  const inTime = all.sets.filter(({ seconds }) => seconds! <= deadline);
  assert.equal(inTime.length, 2);
  assert.equal(sets[0]!.cost, Math.min(...inTime.map(({ cost }) => cost!)));
  assert.match(formatRental(sets, 20000, deadline), /^cheapest within .*: .*x rtx-4090/m);
  const none = (await plan(root, { ...flags, deadline: "1s" })).rental!;
  assert.match(formatRental(none.sets, 20000, 1), /no set is done in time$/);
  const refused = (more: Readonly<Record<string, string>>) =>
    assert.rejects(plan(root, { devices, gpus, ...more }), { code: "PL_CONFIG_INVALID" });
  await refused({ prices: '{"t4": 1}', max_steps: "5" });
  await refused({ max_steps: "5" });
  await refused({ prices: '{"rtx-4090": 0.5}' });
  await refused({ prices: '{"rtx-4090": 0.5}', max_steps: "5", deadline: "soon" });
});

test("the page holds the plan's numbers, and nothing of a name is markup", async (t) => {
  const root = temporaryFolder(t);
  const paper = await plan(root, { devices: "rtx-4090,a100-80gb @ node-b" });
  const page = planPage({ ...paper, title: "<7B> & more", tables: [{ heading: "Plan", text: "a < b" }] });
  assert.match(page, /<title>&lt;7B&gt; &amp; more<\/title>/);
  assert.match(page, /a &lt; b/);
  assert.match(page, /1: NVIDIA A100-SXM4-80GB @ node-b/);
  assert.equal(page.match(/<svg/g)?.length, 3);
  assert.ok(page.includes(`${paper.plan.predicted!.stepTimeMs.toFixed(1)} ms a step`));
  assert.doesNotMatch(page, /https?:|src=|NaN/);
  assert.ok(readFileSync(join(root, "7b", "config.json")).length > 0);
});
