import type { Rendering } from "../formats/jinja/index.ts";
import type { ChatMessage } from "./readers/messages.ts";

/** A stretch of the whole text, in UTF-16 units, that an assistant's message is trained on. */
export interface Span {
  readonly message: number;
  readonly begin: number;
  readonly end: number;
}

type Render = (messages: readonly ChatMessage[], addGenerationPrompt: boolean) => Rendering;

/**
 * The parts of a rendered conversation that are trained on. If the template has `{% generation %}` blocks, their text. Else the text that
 * the template's loop wrote for each assistant message, without the generation prompt. If the template does not loop over the messages,
 * the conversation is rendered up to each turn, and the renderings are compared.
 */
export function assistantSpans(messages: readonly ChatMessage[], whole: Rendering, render: Render): Span[] {
  const passes = new Map(whole.marks.flatMap((mark) => (mark.kind === "pass" ? [[mark.number, mark] as const] : [])));
  const turns = messages.flatMap(({ role }, index) => (role === "assistant" ? [index] : []));
  const generations = whole.marks.filter(({ kind }) => kind === "generation");
  if (generations.length > 0) {
    return generations.map(({ begin, end }, index) => {
      const inside = [...passes.values()].find((pass) => pass.begin <= begin && end <= pass.end);
      return { message: inside?.number ?? turns[Math.min(index, turns.length - 1)]!, begin, end };
    });
  }
  const prompts = generationPrompts(messages, turns, whole, passes, render);
  return turns.map((index) => {
    const pass = passes.get(index);
    const prompt = prompts(index);
    const isLast = index === messages.length - 1;
    const end = isLast ? endOfLast(whole, pass?.end ?? 0, messages, prompt.text, render) : (pass?.end ?? null);
    if (pass !== undefined) {
      return {
        message: index,
        begin: pass.begin + headerLength(whole.text.slice(pass.begin, end!), prompt.text),
        end: end!,
      };
    }
    const begin = whole.text.startsWith(prompt.whole) ? prompt.whole.length : whole.text.length;
    const upTo = isLast ? "" : render(messages.slice(0, index + 1), false).text;
    return { message: index, begin, end: isLast ? end! : whole.text.startsWith(upTo) ? upTo.length : begin };
  });
}

/** Up to this many turns after the same role, each gets a rendering of its own prompt. */
const EACH = 16;

/**
 * The generation prompt of each turn. One costs a rendering of everything before it. So in a long conversation only some turns after the
 * same role are rendered. Where these agree, the other turns that begin with the same prompt take it.
 */
function generationPrompts(
  messages: readonly ChatMessage[],
  turns: readonly number[],
  { text }: Rendering,
  passes: ReadonlyMap<number, { readonly begin: number }>,
  render: Render,
): (turn: number) => Prompt {
  const own = (turn: number) => generationPrompt(messages.slice(0, turn), render);
  const kindOf = (turn: number) => messages[turn - 1]?.role ?? "";
  const common = new Map<string, Prompt | null>();
  for (const kind of new Set(turns.map(kindOf))) {
    const alike = turns.filter((turn) => kindOf(turn) === kind);
    if (alike.length <= EACH) continue;
    const step = (alike.length - 1) / (EACH / 2 - 1);
    const asked = Array.from({ length: EACH / 2 }, (_, i) => own(alike[Math.round(i * step)]!));
    common.set(kind, asked.every((prompt) => prompt.text === asked[0]!.text) ? asked[0]! : null);
  }
  return (turn) => {
    const shared = common.get(kindOf(turn)) ?? null;
    const pass = passes.get(turn);
    return shared !== null && pass !== undefined && text.startsWith(shared.text, pass.begin) ? shared : own(turn);
  };
}

interface Prompt {
  readonly text: string;
  /** The rendering that ends with it. */
  readonly whole: string;
}

/** What a reply to `before` would be given, and the rendering that ends with it. */
function generationPrompt(before: readonly ChatMessage[], render: Render): Prompt {
  if (before.length === 0) return { text: "", whole: "" };
  const asked = render(before, true);
  const plain = render(before, false);
  if (asked.text !== plain.text && asked.text.startsWith(plain.text)) {
    return { text: asked.text.slice(plain.text.length), whole: asked.text };
  }
  // Some templates write the header always: it is what stands behind their last pass.
  return { text: epilogue(asked), whole: asked.text };
}

function epilogue({ text, marks }: Rendering): string {
  const last = marks.reduce((most, mark) => (mark.kind === "pass" ? Math.max(most, mark.end) : most), -1);
  return last < 0 ? "" : text.slice(last);
}

/** The last turn takes what follows its pass (an end token), but no header of a reply that is written all the same. */
function endOfLast(
  whole: Rendering,
  passEnd: number,
  messages: readonly ChatMessage[],
  prompt: string,
  render: Render,
): number {
  const { text } = whole;
  if (prompt === "" || !text.endsWith(prompt) || text.length - prompt.length < passEnd) return text.length;
  return render(messages, true).text === text ? text.length - prompt.length : text.length;
}

/**
 * How many characters of a turn are the generation prompt. If the turn begins with the whole prompt, all of it. Else what both share, up
 * to the end of a tag or line: R1's prompt opens <think>, its finished turns do not.
 */
function headerLength(turn: string, prompt: string): number {
  if (turn.startsWith(prompt)) return prompt.length;
  let shared = 0;
  while (shared < turn.length && turn[shared] === prompt[shared]) shared += 1;
  while (shared > 0 && !/[>\]\s|:｜]/.test(prompt[shared - 1]!)) shared -= 1;
  return shared;
}
