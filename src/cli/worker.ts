#!/usr/bin/env node
import { createLogger } from "../common/log.ts";
import { runWorker } from "../worker/program.ts";
import { runProgram } from "./exit.ts";
import { parseWorker } from "./parse.ts";

const argv = process.argv.slice(2);
let json = false;

await runProgram(
  () => json,
  async () => {
    const parsed = await parseWorker(argv);
    if (parsed === null) return 0;
    const { config } = parsed;
    json = config.log_format === "json";
    const index = process.env["PIPELORA_LOCAL_INDEX"];
    const log = createLogger({
      format: config.log_format,
      level: config.log_level,
      fields: { program: "worker", local_index: Number(index ?? 0) },
      prefix: index === undefined ? "[worker] " : `[worker ${index}] `,
    });
    return runWorker(config, argv, log);
  },
);
