// A pipeline of two processes on one GPU beside one process, over shared memory and over gRPC: the same bits, and tensors that
// travel while the GPU computes. Both ranks share the GPU's time, so what a step takes longer than one process's is what links,
// waiting and switching cost. Prints a line a run; exits 1 if bits differ.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { events, folder, makeModel, median, train } from "./runs.mjs";

const shape = { hidden: 4096, ffn: 11008, blocks: 8, heads: 32, vocab: 8192 };
const model = makeModel("wide", shape, 192, 512);
const settings = [
  ...[...model, "--compute-dtype", "bfloat16", "--torch-dtype", "bfloat16", "--lora-dropout", "0.1"],
  ...[
    "--per-device-train-batch-size",
    "16",
    "--micro-batch-tokens",
    "1024",
    "--max-steps",
    "12",
    "--learning-rate",
    "1e-4",
  ],
];

function run(name, workers, more = []) {
  const output = join(folder, name);
  const stdout = train([...settings, ...more, "--output-dir", output], workers);
  const stepMs = median(
    events(stdout, "step")
      .slice(3)
      .map((step) => step.stepMs),
  );
  const [{ ranks, predicted_step_ms }] = events(stdout, "predictions");
  return {
    stepMs,
    loss: events(stdout, "step").at(-1).loss,
    ranks,
    predicted: predicted_step_ms,
    adapter: readFileSync(join(output, "adapter_model.safetensors")),
  };
}

const round = (value) => (value === null ? null : Number(value.toFixed(1)));
const one = run("one", 1);
console.log(JSON.stringify({ run: "one process", step_ms: round(one.stepMs) }));
let same = true;
for (const link of ["shm", "grpc"]) {
  const two = run(link, 2, ["--link", link]);
  const equal = Buffer.compare(one.adapter, two.adapter) === 0;
  same &&= equal;
  const linkMs = two.ranks.reduce((sum, { link_ms }) => sum + link_ms, 0);
  const longer = Math.max(0, two.stepMs - one.stepMs);
  console.log(
    JSON.stringify({
      run: `two processes, ${link}`,
      step_ms: round(two.stepMs),
      ranks: two.ranks.map((rank) => ({
        compute_ms: round(rank.compute_ms),
        wait_ms: round(rank.wait_ms),
        link_ms: round(rank.link_ms),
      })),
      link_ms: round(linkMs),
      longer_than_one_ms: round(longer),
      hidden_share: linkMs === 0 ? null : Number(Math.max(0, 1 - longer / linkMs).toFixed(2)),
      same_bits: equal,
    }),
  );
}

// Rounded to e4m3 on the way: other bits than one process's, the same ones over both links and in a second run; half the bytes.
const plain = run("plain", 2, ["--link", "grpc"]);
const rounded = ["shm", "grpc", "grpc"].map((link, index) =>
  run(`e4m3-${index}`, 2, ["--link", link, "--link-dtype", "float8_e4m3fn"]),
);
const equal = rounded.every(({ adapter }) => Buffer.compare(adapter, rounded[0].adapter) === 0);
const sent = ({ ranks }) => ranks.reduce((sum, { sent_bytes }) => sum + sent_bytes, 0);
const losses = [plain, ...rounded].map(({ loss }) => loss);
const close = Math.abs(losses[1] / losses[0] - 1) < 0.01;
const half = Math.abs(sent(rounded[0]) / sent(plain) - (shape.hidden + 4) / (2 * shape.hidden)) < 1e-6;
console.log(
  JSON.stringify({
    run: "two processes, e4m3 between them",
    step_ms: [plain, ...rounded].map(({ stepMs }) => round(stepMs)),
    sent_bytes: [plain, ...rounded].map(sent),
    last_loss: losses,
    same_bits_over_links: equal,
    other_bits_than_one: Buffer.compare(one.adapter, rounded[0].adapter) !== 0,
  }),
);
process.exitCode = same && equal && close && half ? 0 : 1;
