// npm run bench                  training on this machine's CPU beside PyTorch
// npm run bench -- coordinator   the coordinator's own time a step
// npm run bench -- predicted     predicted step times beside real runs
// npm run bench -- simulated     predicted throughput on 1 to 512 GPUs
// npm run bench -- links         tensors between two processes of this machine, beside raw TCP and memcpy
import { benchCoordinator } from "./coordinator.ts";
import { benchCpu } from "./cpu.ts";
import { benchLinks } from "./links.ts";
import { benchPredicted } from "./predicted.ts";
import { benchSimulated } from "./simulated.ts";

const BENCHES: Readonly<Record<string, (print: (row: object) => void) => void | Promise<void>>> = {
  cpu: benchCpu,
  coordinator: benchCoordinator,
  predicted: benchPredicted,
  simulated: benchSimulated,
  links: benchLinks,
};

const name = process.argv[2] ?? "cpu";
const bench = BENCHES[name];
if (bench === undefined) {
  process.stderr.write(`unknown benchmark "${name}"; there are ${Object.keys(BENCHES).join(", ")}\n`);
  process.exit(1);
}
await bench((row) => process.stdout.write(`${JSON.stringify(row)}\n`));
