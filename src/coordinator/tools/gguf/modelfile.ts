import type { ChatTemplate } from "../../../data/chat-template.ts";
import type { ChatMessage } from "../../../data/readers/messages.ts";

export interface ModelfileParts {
  /** What FROM names: a file beside the Modelfile, or a model. */
  readonly from: string;
  /** A GGUF LoRA beside it; null: none. */
  readonly adapter: string | null;
  /** Ollama's template; null: the file's own is looked at by Ollama. */
  readonly template: string | null;
  /** Texts that end an answer. */
  readonly stops: readonly string[];
  /** temperature, top_p, …: those of generation_config.json. */
  readonly parameters: Readonly<Record<string, number>>;
}

/** An Ollama Modelfile (its docs/modelfile.md). */
export function modelfileText({ from, adapter, template, stops, parameters }: ModelfileParts): string {
  const lines = [`FROM ${from}`];
  if (adapter !== null) lines.push(`ADAPTER ${adapter}`);
  // Three quotes end a text, and can't be written in one.
  if (template !== null && !template.includes('"""')) lines.push(`TEMPLATE """${template}"""`);
  for (const stop of stops) lines.push(`PARAMETER stop ${JSON.stringify(stop)}`);
  for (const [key, value] of Object.entries(parameters)) lines.push(`PARAMETER ${key} ${value}`);
  return `${lines.join("\n")}\n`;
}

type Role = "system" | "user" | "assistant";
/** What stands around a turn's text. */
type Turn = readonly [before: string, after: string];

interface Turns {
  /** In front of everything. */
  readonly head: string;
  /** Behind it, where no system message comes first (Qwen2.5's own). */
  readonly lead: string;
  /** null: the template takes no such turn. */
  readonly system: Turn | null;
  readonly user: Turn;
  readonly assistant: Turn;
  /** Behind the last user's turn, where the answer begins. */
  readonly answer: string;
}

/** Texts that no template has, of each turn. */
const MARK = (i: number) => `\u0001turn ${i}\u0002`;

const CONVERSATIONS: readonly (readonly Role[])[] = [
  ["user"],
  ["system", "user"],
  ["user", "assistant", "user"],
  ["system", "user", "assistant", "user"],
  ["user", "assistant", "user", "assistant", "user"],
  ["system", "user", "assistant", "user", "assistant", "user"],
];

/**
 * The chat template in Ollama's form (Go's text/template over .Messages). It is derived from what the template renders, and kept only if it
 * gives the same text for all test conversations. null: turns depend on more than their role (a template that drops a system message, or
 * writes the date). `bos`: the text of BOS, and whether llama.cpp adds it itself.
 */
export function ollamaTemplate(
  template: ChatTemplate,
  bos: { readonly text: string; readonly added: boolean } | null,
): string | null {
  const texts = CONVERSATIONS.map((roles) => ({ roles, text: rendered(template, roles) }));
  // Not to be cut where it looks like an end of a turn.
  const first = bos !== null && texts.every(({ text }) => text?.startsWith(bos.text) ?? true) ? bos.text : "";
  const made = texts.map(({ roles, text }) => ({ roles, text: text?.slice(first.length) ?? null }));
  const turns = turnsOf(new Map(made.map(({ roles, text }) => [roles.join(), text])));
  if (turns === null) return null;
  const faithful = made.every(({ roles, text }) => {
    if (text === null) return roles.includes("system") && turns.system === null;
    return written(turns, roles) === text;
  });
  return faithful ? (bos?.added ? "" : escaped(first)) + goTemplate(turns) : null;
}

function rendered(template: ChatTemplate, roles: readonly Role[]): string | null {
  const messages = roles.map((role, i) => ({ role, content: MARK(i) }) as ChatMessage);
  try {
    return template.render(messages, true).text;
  } catch {
    return null;
  }
}

/** What stands between the marks of a conversation, first and last included; null where one is missing or out of order. */
function between(text: string | null | undefined, count: number): string[] | null {
  if (text === null || text === undefined) return null;
  const parts: string[] = [];
  let rest = text;
  for (let i = 0; i < count; i++) {
    const at = rest.indexOf(MARK(i));
    if (at < 0) return null;
    parts.push(rest.slice(0, at));
    rest = rest.slice(at + MARK(i).length);
  }
  return [...parts, rest];
}

function turnsOf(texts: ReadonlyMap<string, string | null>): Turns | null {
  const one = between(texts.get("user"), 1);
  const three = between(texts.get("user,assistant,user"), 3);
  const two = between(texts.get("system,user"), 2);
  if (one === null || three === null) return null;
  const [first, last] = one as [string, string];
  const [, toAssistant, toUser] = three as [string, string, string, string];
  const system = two?.[0] ?? null;
  // What is the same at the ends of texts in front of a user's turn belongs to the turn.
  const before = commonEnd([first, toUser, ...(two === null ? [] : [two[1]!])]);
  const start = withoutEnd(first, before);
  const head = commonBeginning([start, ...(system === null ? [] : [system])]);
  const after = commonBeginning([last, toAssistant]);
  return {
    head,
    lead: start.slice(head.length),
    system: system === null ? null : [system.slice(head.length), withoutEnd(two![1]!, before)],
    user: [before, after],
    assistant: [toAssistant.slice(after.length), withoutEnd(toUser, before)],
    answer: last.slice(after.length),
  };
}

function written(turns: Turns, roles: readonly Role[]): string {
  const body = roles.map((role, i) => {
    const [before, after] = turns[role] ?? ["", ""];
    return before + MARK(i) + after;
  });
  return turns.head + (roles[0] === "system" ? "" : turns.lead) + body.join("") + turns.answer;
}

function commonEnd(texts: readonly string[]): string {
  const [first, ...rest] = texts as [string, ...string[]];
  let size = first.length;
  while (size > 0 && !rest.every((text) => text.endsWith(first.slice(first.length - size)))) size -= 1;
  return first.slice(first.length - size);
}

function commonBeginning(texts: readonly string[]): string {
  const [first, ...rest] = texts as [string, ...string[]];
  let size = first.length;
  while (size > 0 && !rest.every((text) => text.startsWith(first.slice(0, size)))) size -= 1;
  return first.slice(0, size);
}

const withoutEnd = (text: string, end: string) => text.slice(0, text.length - end.length);

function goTemplate({ head, lead, system, user, assistant, answer }: Turns): string {
  const turn = (role: Role, [before, after]: Turn) =>
    `eq .Role "${role}" }}${escaped(before)}{{ .Content }}${escaped(after)}`;
  const turns = [
    ...(system === null ? [] : [turn("system", system)]),
    turn("user", user),
    turn("assistant", assistant),
  ];
  const first = lead === "" ? "" : `{{ if ne (index .Messages 0).Role "system" }}${escaped(lead)}{{ end }}`;
  return `${escaped(head)}${first}{{ range .Messages }}{{ if ${turns.join("{{ else if ")}{{ end }}{{ end }}${escaped(answer)}`;
}

/** Text of a Go template: two braces would begin an action. */
const escaped = (text: string) => text.replaceAll("{{", '{{ "{{" }}');
