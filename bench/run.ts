// npm run bench                  training on this machine's CPU beside PyTorch
// npm run bench -- workers       two CPU workers against one, in turn
// npm run bench -- adapters [WORKERS…]   eight adapters in one run beside eight runs after each other
// npm run bench -- coordinator   the coordinator's own time a step
// npm run bench -- planning [ROWS EPOCHS]…   how long planning looks at every step, and holds the event loop
// npm run bench -- predicted     predicted step times beside real runs
// npm run bench -- pipelines     pipelines of CPU workers beside the best they could do
// npm run bench -- simulated     predicted throughput on 1 to 512 GPUs
// npm run bench -- multi-gpu [--weights DIR]   training at published shapes over all GPUs of this host, by placement and link; names after it
//                                (qwen2.5-32b, nf4, 8x384, 1f1b, nccl, …) keep it to those
// npm run bench -- links         tensors between two processes of this machine, beside raw TCP and memcpy
// npm run bench -- gpu [--peer] [--rows NAME,…]   whole steps at Qwen-7B's shape on one GPU, beside targets and peers
import { isErrorCode } from "../src/common/errors.ts";
import { benchAdapters } from "./adapters.ts";
import { benchCoordinator } from "./coordinator.ts";
import { benchCpu } from "./cpu.ts";
import { benchGpu } from "./gpu.mjs";
import { benchLinks } from "./links.ts";
import { benchMultiGpu } from "./multi-gpu.ts";
import { benchPipelines } from "./pipelines.ts";
import { benchPlanning } from "./planning.ts";
import { benchPredicted } from "./predicted.ts";
import { benchSimulated } from "./simulated.ts";
import { benchWorkers } from "./workers.ts";

type Bench = (print: (row: object) => void, args: readonly string[]) => void | Promise<void>;

const BENCHES: Readonly<Record<string, Bench>> = {
  cpu: benchCpu,
  workers: benchWorkers,
  adapters: benchAdapters,
  coordinator: benchCoordinator,
  planning: benchPlanning,
  pipelines: benchPipelines,
  predicted: benchPredicted,
  simulated: benchSimulated,
  links: benchLinks,
  gpu: benchGpu,
  "multi-gpu": benchMultiGpu,
};

const name = process.argv[2] ?? "cpu";
const bench = BENCHES[name];
if (bench === undefined) {
  process.stderr.write(`unknown benchmark "${name}"; there are ${Object.keys(BENCHES).join(", ")}\n`);
  process.exit(1);
}
try {
  await bench((row) => process.stdout.write(`${JSON.stringify(row)}\n`), process.argv.slice(3));
} catch (error) {
  const { code, message, hint } = error as { code?: string; message: string; hint?: string };
  if (code === undefined || !isErrorCode(code)) throw error;
  process.stderr.write(`${code}: ${message}\n${hint === undefined ? "" : `${hint}\n`}`);
  process.exitCode = 1;
}
