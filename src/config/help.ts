import { defaultConfig } from "./load.ts";
import { type Command, flagOf, type Option } from "./option.ts";
import { OPTIONS, type OptionKey, optionsOf } from "./options.ts";

/** "--lora-r N" */
export function flagSyntax(key: string, option: Option): string {
  return option.placeholder === "" ? flagOf(key) : `${flagOf(key)} ${option.placeholder}`;
}

function shown(value: unknown): string {
  if (value === null || value === false || (typeof value === "object" && Object.keys(value).length === 0)) return "";
  return typeof value === "string" ? value : JSON.stringify(value);
}

function sentence({ help, environment }: Option): string {
  return environment === undefined ? help : `${help} Also $${environment}.`;
}

/** The flags of a command for --help, grouped. */
export function helpText(command: Command): string {
  const defaults = defaultConfig();
  const groups = new Map<string, string[]>();
  for (const [key, option] of optionsOf(command)) {
    const standard = shown(defaults[key]);
    const line = `  ${flagSyntax(key, option).padEnd(40)} ${sentence(option)}${standard === "" ? "" : ` [${standard}]`}`;
    groups.set(option.group, [...(groups.get(option.group) ?? []), line]);
  }
  return [...groups].map(([group, lines]) => `${group}:\n${lines.join("\n")}`).join("\n\n");
}

/** docs/reference/flags.md: one table a group. */
export function flagsTable(): string {
  const defaults = defaultConfig();
  const groups = new Map<string, string[]>();
  for (const [key, option] of Object.entries(OPTIONS) as [OptionKey, Option][]) {
    const cells = [
      `\`${flagSyntax(key, option)}\``,
      shown(defaults[key]) || "–",
      option.commands.join(", "),
      sentence(option),
    ];
    const row = `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`;
    groups.set(option.group, [...(groups.get(option.group) ?? []), row]);
  }
  const tables = [...groups].map(
    ([group, rows]) =>
      `## ${group}\n\n| flag | default | commands | what it does |\n|---|---|---|---|\n${rows.join("\n")}\n`,
  );
  return `# Flags\n\nGenerated from the configuration schema by \`npm run docs\`. In a YAML file (\`--config\`) the same keys stand in snake_case. \`sweep\` takes the flags of \`train\`.\n\n${tables.join("\n")}`;
}
