// Fifty steps of one model in float32, bfloat16 and float16 (with dynamic loss scaling): how far the loss curves of 16 bits lie
// from float32's. The base is the same bfloat16 values in all. Exits 1 if one is further than 1 %.
import { join } from "node:path";
import process from "node:process";
import { events, folder, makeModel, train } from "./runs.mjs";

const STEPS = 50;
const TARGET = 0.01;
const model = makeModel("curves", { hidden: 1024, ffn: 2816, blocks: 8, heads: 16, vocab: 4096 }, 128, 128);

function losses(dtype) {
  const output = join(folder, dtype);
  const settings = ["--per-device-train-batch-size", "8", "--max-steps", String(STEPS), "--learning-rate", "1e-3"];
  const precision = ["--compute-dtype", dtype, "--torch-dtype", "bfloat16", "--lora-dropout", "0.05"];
  const stdout = train([...model, ...settings, ...precision, "--logging-steps", "1", "--output-dir", output]);
  return events(stdout, "log")
    .map(({ loss }) => loss)
    .filter((loss) => loss !== undefined);
}

const reference = losses("float32");
let good = reference.length === STEPS && reference.at(-1) < reference[0];
console.log(
  JSON.stringify({ dtype: "float32", first_loss: reference[0], last_loss: reference.at(-1), steps: reference.length }),
);
for (const dtype of ["bfloat16", "float16"]) {
  const own = losses(dtype);
  const far = own.map((loss, step) => Math.abs(loss - reference[step]) / reference[step]);
  const most = Math.max(...far);
  const within = own.length === STEPS && most < TARGET;
  good &&= within;
  console.log(
    JSON.stringify({
      dtype,
      first_loss: own[0],
      last_loss: own.at(-1),
      largest_relative_difference: Number(most.toExponential(2)),
      at_step: far.indexOf(most) + 1,
      within_1_percent: within,
    }),
  );
}
process.exitCode = good ? 0 : 1;
