import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Config } from "../../config/options.ts";
import { DEMO_DATASET, makeDemoModel } from "../../coordinator/tools/demo-model.ts";
import { clockFinding } from "../../doctor/clock.ts";
import { type Finding, fail, formatFindings, ok } from "../../doctor/finding.ts";
import { gpuFindings } from "../../doctor/gpu.ts";
import {
  diskFinding,
  limitsFinding,
  memoryFinding,
  processorFinding,
  sharedMemoryFinding,
} from "../../doctor/machine.ts";
import { hostFinding, portsFinding } from "../../doctor/network.ts";
import { engineFinding, nodeFinding, versionFinding } from "../../doctor/software.ts";
import type { Capabilities } from "../../engine/index.ts";
import { runCoordinator } from "../own-program.ts";

const TRAINING_SECONDS = 120;
const STEPS = 2;

/** Prints a line a finding. Exit code 0 only if training works here: two steps of a small model are trained to find out. */
export async function doctorCommand(config: Config): Promise<number> {
  const { finding, capabilities } = engineFinding();
  const gpus = capabilities?.cuda?.devices.length ?? 0;
  const findings: Finding[] = [
    nodeFinding(),
    finding,
    ...(capabilities === null
      ? []
      : [versionFinding(capabilities), processorFinding(capabilities), ...(await gpuFindings(capabilities))]),
    memoryFinding(),
    await sharedMemoryFinding(gpus),
    await diskFinding(config.output_dir ?? "."),
    await limitsFinding(),
    await portsFinding(),
    hostFinding(),
    clockFinding(),
  ];
  if (findings.every(({ verdict }) => verdict !== "fail") && capabilities !== null)
    findings.push(await trainingFinding(capabilities));
  const works = findings.every(({ verdict }) => verdict !== "fail");
  if (config.json) process.stdout.write(`${JSON.stringify({ works, findings })}\n`);
  else
    process.stdout.write(
      `${formatFindings(findings)}\n${works ? "Training works here." : "Training does not work here."}\n`,
    );
  return works ? 0 : 1;
}

/** Trains, as `coordinator train` does: on the first GPU where there is one, else on the CPU. */
async function trainingFinding({ cuda }: Capabilities): Promise<Finding> {
  const folder = await mkdtemp(join(tmpdir(), "pipelora-doctor-"));
  const started = Date.now();
  try {
    const model = join(folder, "model");
    await makeDemoModel(model);
    const gpu = (cuda?.devices.length ?? 0) > 0;
    const flags = [
      ...[
        "--model",
        model,
        "--dataset",
        DEMO_DATASET,
        "--output-dir",
        join(folder, "adapter"),
        "--save-strategy",
        "no",
      ],
      ...["--max-steps", String(STEPS), "--lora-r", "8", "--target-modules", "c_attn,c_proj", "--log-level", "error"],
    ];
    const first = process.env["CUDA_VISIBLE_DEVICES"]?.split(",")[0] ?? "0";
    const environment = gpu ? { CUDA_VISIBLE_DEVICES: first } : {};
    const { code, stderr } = await runCoordinator(["train", ...flags], {
      shown: false,
      seconds: TRAINING_SECONDS,
      environment,
    });
    const seconds = ((Date.now() - started) / 1000).toFixed(1);
    if (code === 0)
      return ok(
        "training",
        `${STEPS} steps of a small model on ${gpu ? "a GPU" : "the CPU"}, ${seconds} s with start and end`,
      );
    return fail("training", `ended with code ${code}: ${stderr.trim()}`, "Do what the message says.");
  } catch (error) {
    return fail(
      "training",
      (error as Error).message,
      `Look at what keeps it: ${STEPS} steps of a small model should take seconds.`,
    );
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
