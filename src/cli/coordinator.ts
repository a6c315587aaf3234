#!/usr/bin/env node
import { createLogger, type Logger } from "../common/log.ts";
import type { Command } from "../config/option.ts";
import type { Config } from "../config/options.ts";
import { chatCommand } from "./commands/chat.ts";
import { initModelCommand, mergeCommand, tokenizeCommand } from "./commands/files.ts";
import { generateCommand } from "./commands/generate.ts";
import { parametersCommand } from "./commands/parameters.ts";
import { planCommand } from "./commands/plan.ts";
import { trainCommand } from "./commands/train.ts";
import { runProgram } from "./exit.ts";
import { parseCoordinator } from "./parse.ts";

const RUN: Readonly<Record<Exclude<Command, "worker">, (config: Config, log: Logger) => Promise<number>>> = {
  train: trainCommand,
  plan: planCommand,
  parameters: parametersCommand,
  generate: generateCommand,
  chat: chatCommand,
  merge: mergeCommand,
  tokenize: tokenizeCommand,
  "init-model": initModelCommand,
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
    return RUN[command as Exclude<Command, "worker">](config, log);
  },
);
