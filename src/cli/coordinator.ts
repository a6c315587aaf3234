#!/usr/bin/env node
import { createLogger, type Logger } from "../common/log.ts";
import type { CoordinatorCommand } from "../config/option.ts";
import type { Config } from "../config/options.ts";
import { runProgram } from "./exit.ts";
import { parseCoordinator } from "./parse.ts";

type Run = (config: Config, log: Logger) => Promise<number>;

/** A command's module is loaded when the command is chosen: `plan` does not load gRPC, and `tokenize` does not load the engine. */
const COMMANDS: Readonly<Record<CoordinatorCommand, () => Promise<Run>>> = {
  train: async () => (await import("./commands/train.ts")).trainCommand,
  sweep: async () => (await import("./commands/sweep.ts")).sweepCommand,
  plan: async () => (await import("./commands/plan.ts")).planCommand,
  parameters: async () => (await import("./commands/parameters.ts")).parametersCommand,
  generate: async () => (await import("./commands/generate.ts")).generateCommand,
  serve: async () => (await import("./commands/serve.ts")).serveCommand,
  ui: async () => (await import("./commands/ui.ts")).uiCommand,
  chat: async () => (await import("./commands/chat.ts")).chatCommand,
  merge: async () => (await import("./commands/files.ts")).mergeCommand,
  export: async () => (await import("./commands/files.ts")).exportCommand,
  "add-tokens": async () => (await import("./commands/files.ts")).addTokensCommand,
  quantize: async () => (await import("./commands/files.ts")).quantizeCommand,
  tokenize: async () => (await import("./commands/files.ts")).tokenizeCommand,
  "init-model": async () => (await import("./commands/files.ts")).initModelCommand,
  download: async () => (await import("./commands/download.ts")).downloadCommand,
  push: async () => (await import("./commands/download.ts")).pushCommand,
  "convert-config": async () => (await import("./commands/convert-config.ts")).convertConfigCommand,
  certs: async () => (await import("./commands/files.ts")).certsCommand,
  demo: async () => (await import("./commands/demo.ts")).demoCommand,
  doctor: async () => (await import("./commands/doctor.ts")).doctorCommand,
  completion: async () => (await import("./commands/completion.ts")).completionCommand,
};

let json = process.argv.includes("--json");

await runProgram(
  () => json,
  async () => {
    const parsed = await parseCoordinator(process.argv.slice(2));
    if (parsed === null) return 0;
    const { command, config } = parsed;
    json = config.json || config.log_format === "json";
    const log = createLogger({
      format: config.log_format,
      level: config.log_level,
      fields: { program: "coordinator" },
    });
    const run = await COMMANDS[command as CoordinatorCommand]();
    return run(config, log);
  },
);
