import type { Config } from "../../config/options.ts";
import { completionScript } from "../completion.ts";
import { wholeProgram } from "../parse.ts";

/** Prints a script for the shell to read. */
export async function completionCommand(config: Config): Promise<number> {
  process.stdout.write(completionScript(config.shell!, wholeProgram()));
  return 0;
}
