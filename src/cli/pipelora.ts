#!/usr/bin/env node
// One name for both programs: `pipelora worker` is `worker`, anything else is `coordinator`.
if (process.argv[2] === "worker") {
  process.argv.splice(2, 1);
  await import("./worker.ts");
} else {
  await import("./coordinator.ts");
}

export {};
