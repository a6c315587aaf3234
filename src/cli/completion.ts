import type { Command as Program } from "commander";

export type Shell = "bash" | "zsh" | "fish";

interface Flag {
  /** "--model" */
  readonly name: string;
  readonly help: string;
  /** Whether a value always follows. */
  readonly takesValue: boolean;
}

interface Entry {
  readonly name: string;
  readonly help: string;
  readonly flags: readonly Flag[];
}

/** Programs that take commands. `worker` is both a program and a command. */
const PROGRAMS = ["pipelora", "coordinator"];
const WORKER = "worker";

/** A script that completes the commands and flags of a commander program in a shell. It is made from the program, so it lists what there is. */
export function completionScript(shell: Shell, program: Program): string {
  const entries = program.commands.map((command) => ({
    name: command.name(),
    help: command.description(),
    flags: [
      ...command.options.map((option) => ({
        name: option.long!,
        help: option.description,
        takesValue: option.required,
      })),
      HELP,
    ],
  }));
  return { bash, zsh, fish }[shell](entries);
}

const HELP: Flag = { name: "--help", help: "show help", takesValue: false };
const namesOf = (entries: readonly { readonly name: string }[]) => entries.map(({ name }) => name).join(" ");
/** A first word that names no command belongs to the default command. */
const cases = (entries: readonly Entry[], line: (entry: Entry) => string) =>
  [...entries.map((entry) => `${entry.name}) ${line(entry)} ;;`), `*) ${line(entries[0]!)} ;;`]
    .map((text) => `    ${text}\n`)
    .join("");

function bash(entries: readonly Entry[]): string {
  return `# bash completion of pipelora: eval "$(pipelora completion bash)"
_pipelora() {
  local current=\${COMP_WORDS[COMP_CWORD]} command=\${COMP_WORDS[1]} flags
  [[ \${COMP_WORDS[0]##*/} == ${WORKER} ]] && command=${WORKER}
  if [[ $COMP_CWORD == 1 && $current != -* && \${COMP_WORDS[0]##*/} != ${WORKER} ]]; then
    COMPREPLY=($(compgen -W "${namesOf(entries)}" -- "$current"))
    return
  fi
  case $command in
${cases(entries, ({ flags }) => `flags="${namesOf(flags)}"`)}  esac
  # Values: files, which bash completes by itself.
  [[ $current == -* ]] && COMPREPLY=($(compgen -W "$flags" -- "$current"))
}
complete -o default -F _pipelora ${[...PROGRAMS, WORKER].join(" ")}
`;
}

function zsh(entries: readonly Entry[]): string {
  const described = (items: readonly { readonly name: string; readonly help: string }[]) =>
    items.map(({ name, help }) => quoted(`${name}:${help.replaceAll(":", "\\\\:")}`)).join(" ");
  return `#compdef ${[...PROGRAMS, WORKER].join(" ")}
# zsh completion of pipelora: source <(pipelora completion zsh), after compinit
_pipelora() {
  local command=$words[2]
  local -a commands flags
  commands=(${described(entries)})
  [[ \${words[1]:t} == ${WORKER} ]] && command=${WORKER}
  if (( CURRENT == 2 )) && [[ $words[CURRENT] != -* && \${words[1]:t} != ${WORKER} ]]; then
    _describe command commands
    return
  fi
  case $command in
${cases(entries, ({ flags }) => `flags=(${described(flags)})`)}  esac
  if [[ $words[CURRENT] == -* ]]; then _describe -o flag flags; else _files; fi
}
compdef _pipelora ${[...PROGRAMS, WORKER].join(" ")}
`;
}

function fish(entries: readonly Entry[]): string {
  const lines = ["# fish completion of pipelora: pipelora completion fish | source"];
  const flagLines = (program: string, condition: string, flags: readonly Flag[]) =>
    flags.map(
      ({ name, help, takesValue }) =>
        `complete -c ${program}${condition} -l ${name.slice(2)}${takesValue ? " -r" : ""} -d ${quoted(help)}`,
    );
  const rest = `not __fish_seen_subcommand_from ${namesOf(entries.slice(1))}`;
  for (const program of PROGRAMS) {
    for (const { name, help } of entries)
      lines.push(`complete -c ${program} -f -n __fish_use_subcommand -a ${name} -d ${quoted(help)}`);
    for (const [index, { name, flags }] of entries.entries())
      lines.push(
        ...flagLines(program, ` -n ${quoted(index === 0 ? rest : `__fish_seen_subcommand_from ${name}`)}`, flags),
      );
  }
  lines.push(...flagLines(WORKER, "", entries.find(({ name }) => name === WORKER)!.flags));
  return `${lines.join("\n")}\n`;
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
