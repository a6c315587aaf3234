import { CommanderError, Command as Program, Option as ProgramOption } from "commander";
import { PipeloraError } from "../common/errors.ts";
import { nearest } from "../common/nearest.ts";
import { PACKAGE_VERSION } from "../common/root.ts";
import { helpText } from "../config/help.ts";
import { type FlagValues, loadConfig } from "../config/load.ts";
import { COORDINATOR_COMMANDS, type Command, flagOf, type Option, WORKER_SUMMARY } from "../config/option.ts";
import { type Config, type OptionKey, optionsOf } from "../config/options.ts";

export interface Parsed {
  readonly command: Command;
  readonly config: Config;
}

/** The option that a command's positional argument stands for. */
const POSITIONAL: Readonly<Partial<Record<Command, OptionKey>>> = {
  download: "name",
  push: "name",
  ui: "output_dir",
  "convert-config": "config",
  completion: "shell",
};

type Commands = Readonly<Partial<Record<Command, string>>>;

/** null: help or version was asked for and has been printed. */
export async function parseCoordinator(argv: readonly string[]): Promise<Parsed | null> {
  return parse("coordinator", COORDINATOR_COMMANDS, argv);
}

export async function parseWorker(argv: readonly string[]): Promise<Parsed | null> {
  return parse("worker", { worker: WORKER_SUMMARY }, argv);
}

/** A chosen command and its flags, by key. */
interface Chosen {
  readonly command: Command;
  readonly flags: FlagValues;
}

/** Every command of `pipelora` with its flags, as commander knows them. */
export function wholeProgram(): Program {
  return programOf("pipelora", { ...COORDINATOR_COMMANDS, worker: WORKER_SUMMARY }, () => {});
}

function programOf(name: string, commands: Commands, choose: (chosen: Chosen) => void): Program {
  const only = Object.keys(commands).length === 1;
  const program = new Program(name).version(PACKAGE_VERSION).helpOption("-h, --help", "show help");
  for (const [index, [command, summary]] of (Object.entries(commands) as [Command, string][]).entries()) {
    const target = only ? program : program.command(command, { isDefault: index === 0 });
    target.description(summary).allowExcessArguments(false);
    // Values under commander's own names: "loadIn4bit".
    const keys = new Map<string, string>();
    for (const [key, option] of optionsOf(command)) {
      const added = programOption(key, option, command);
      keys.set(added.attributeName(), key);
      target.addOption(added);
    }
    target.addHelpText("after", `\n${helpText(command)}`);
    const positional = POSITIONAL[command];
    if (positional !== undefined) target.argument(`[${positional}]`);
    target.action((...given: unknown[]) => {
      const values = given[positional === undefined ? 0 : 1] as Record<string, string | boolean>;
      const first = positional === undefined ? undefined : (given[0] as string | undefined);
      choose({
        command,
        flags: {
          ...(first === undefined ? {} : { [positional!]: first }),
          ...Object.fromEntries(Object.entries(values).map(([flag, value]) => [keys.get(flag)!, value])),
        },
      });
    });
  }
  for (const target of [program, ...program.commands]) {
    target.exitOverride().configureOutput({ writeErr: () => {} });
    target.showSuggestionAfterError(true);
  }
  return program;
}

async function parse(name: string, commands: Commands, argv: readonly string[]): Promise<Parsed | null> {
  let chosen: Chosen | null = null;
  const program = programOf(name, commands, (found) => {
    chosen = found;
  });
  try {
    await program.parseAsync([...argv], { from: "user" });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) return null;
    throw new PipeloraError("PL_CONFIG_INVALID", describe(error, argv, commands), {
      hint: `Run \`${name} --help\` for commands and flags.`,
    });
  }
  const { command, flags } = chosen as unknown as Chosen;
  return { command, config: await loadConfig(command, flags) };
}

function describe(error: CommanderError, argv: readonly string[], commands: Commands): string {
  const [first] = argv;
  if (error.code === "commander.excessArguments" && first !== undefined && !first.startsWith("-")) {
    return `unknown command "${first}"; commands are ${Object.keys(commands).join(", ")}`;
  }
  const message = error.message.replace(/^error: /, "");
  const unknown = /unknown option '(--[^']+)'/.exec(message)?.[1];
  if (unknown === undefined) return message;
  const all = Object.keys(commands) as Command[];
  const flagsOf = (command: Command) => optionsOf(command).map(([key]) => flagOf(key));
  // Without a command's name it is the first's.
  const given = all.find((command) => command === first) ?? (first?.startsWith("-") === true ? all[0] : undefined);
  const takers = all.filter((command) => flagsOf(command).includes(unknown));
  if (given !== undefined && takers.length > 0)
    return `${unknown} is no flag of \`${given}\`, but of ${takers.join(", ")}`;
  const [near] = nearest(unknown, given === undefined ? [...new Set(all.flatMap(flagsOf))] : flagsOf(given), 1);
  return near === undefined ? message : `${message}; did you mean ${near}?`;
}

function programOption(key: string, option: Option, command: Command): ProgramOption {
  const optionalValue = option.kind === "boolean" || option.kind === "boolean-or-string";
  const syntax = `${flagOf(key)} ${optionalValue ? "[value]" : "<value>"}`;
  const added = new ProgramOption(syntax, option.help).hideHelp();
  if (option.repeats?.includes(command) === true) {
    added.argParser<string>((value, before) => (before === undefined ? value : `${before},${value}`));
  }
  return added;
}
