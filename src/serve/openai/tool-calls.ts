import { randomBytes } from "node:crypto";

export interface ToolCall {
  readonly id: string;
  readonly name: string;
  /** JSON. */
  readonly arguments: string;
}

export interface ToolPiece {
  readonly content: string;
  readonly calls: readonly ToolCall[];
}

/** Finds tool calls in a reply's text as it arrives; other text is content. */
export interface ToolReader {
  push(text: string): ToolPiece;
  /** The rest, once no text follows. */
  end(): ToolPiece;
}

/**
 * How a family writes its calls, as its chat template shows it: between <tool_call> tags as JSON (Hermes, Qwen), behind [TOOL_CALLS]
 * as a list or as name[ARGS]JSON (Mistral), or as a JSON object that is the whole reply (Llama 3). null: the template knows no tools.
 */
export function toolReader(template: string): ToolReader | null {
  if (template.includes("<tool_call>")) return new TaggedCalls("<tool_call>", "</tool_call>");
  if (template.includes("[TOOL_CALLS]")) return new MarkedCalls("[TOOL_CALLS]");
  if (/\btools\b/.test(template) && /["']parameters["']/.test(template)) return new WholeCalls();
  return null;
}

/** <tool_call>{"name": …, "arguments": …}</tool_call> */
class TaggedCalls implements ToolReader {
  readonly #open: string;
  readonly #close: string;
  #held = "";
  #inside = false;
  #called = false;

  constructor(open: string, close: string) {
    this.#open = open;
    this.#close = close;
  }

  push(text: string): ToolPiece {
    this.#held += text;
    let content = "";
    const calls: ToolCall[] = [];
    for (;;) {
      const mark = this.#inside ? this.#close : this.#open;
      const at = this.#held.indexOf(mark);
      if (at < 0) break;
      const before = this.#held.slice(0, at);
      this.#held = this.#held.slice(at + mark.length);
      if (this.#inside) {
        const found = parseCalls(before);
        if (found === null) content += this.#open + before + this.#close;
        else calls.push(...found);
      } else content += before;
      this.#inside = !this.#inside;
    }
    if (!this.#inside) {
      const kept = beginning(this.#held, this.#open);
      content += this.#held.slice(0, this.#held.length - kept);
      this.#held = this.#held.slice(this.#held.length - kept);
    }
    this.#called = this.#called || calls.length > 0;
    // Line breaks between and after calls belong to no content.
    return { content: this.#called && content.trim() === "" ? "" : content, calls };
  }

  end(): ToolPiece {
    const rest = this.#held;
    this.#held = "";
    if (!this.#inside) return { content: this.#called ? rest.trim() : rest, calls: [] };
    this.#inside = false;
    // Some families end the reply without the last tag.
    const calls = parseCalls(rest);
    return calls === null ? { content: this.#open + rest, calls: [] } : { content: "", calls };
  }
}

/** [TOOL_CALLS][{"name": …, "arguments": …}], or [TOOL_CALLS]name[ARGS]{…} once or more */
class MarkedCalls implements ToolReader {
  readonly #mark: string;
  #held = "";
  #marked = false;

  constructor(mark: string) {
    this.#mark = mark;
  }

  push(text: string): ToolPiece {
    this.#held += text;
    if (this.#marked) return { content: "", calls: [] };
    const at = this.#held.indexOf(this.#mark);
    const kept = at < 0 ? beginning(this.#held, this.#mark) : this.#held.length - at;
    const content = this.#held.slice(0, this.#held.length - kept);
    this.#held = this.#held.slice(this.#held.length - kept);
    this.#marked = at >= 0;
    return { content, calls: [] };
  }

  end(): ToolPiece {
    const rest = this.#held;
    this.#held = "";
    if (!this.#marked) return { content: rest, calls: [] };
    this.#marked = false;
    const calls: ToolCall[] = [];
    for (const part of rest.split(this.#mark).slice(1)) {
      const named = /^\s*([\w.-]+)(?:\[CALL_ID\]([\w-]+))?\[ARGS\]([\s\S]*)$/.exec(part);
      const found = named === null ? parseCalls(part) : parseCalls(`{"name":"${named[1]}","arguments":${named[3]}}`);
      if (found === null) return { content: rest, calls: [] };
      calls.push(...found);
    }
    return { content: "", calls };
  }
}

/** {"name": …, "parameters": …} and nothing else */
class WholeCalls implements ToolReader {
  #held = "";
  #content = false;

  push(text: string): ToolPiece {
    if (this.#content) return { content: text, calls: [] };
    this.#held += text;
    const start = this.#held.trimStart();
    if (start === "" || start.startsWith("{") || TAG.startsWith(start) || start.startsWith(TAG)) {
      return { content: "", calls: [] };
    }
    this.#content = true;
    return { content: this.#held, calls: [] };
  }

  end(): ToolPiece {
    if (this.#content) return { content: "", calls: [] };
    const rest = this.#held;
    const calls = parseCalls(rest.trim().replace(TAG, ""));
    return calls === null ? { content: rest, calls: [] } : { content: "", calls };
  }
}

const TAG = "<|python_tag|>";

/** One call or a list of them as JSON; null: it is none. */
function parseCalls(text: string): ToolCall[] | null {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return null;
  }
  const calls = (Array.isArray(value) ? value : [value]).map((call: unknown): ToolCall | null => {
    if (typeof call !== "object" || call === null) return null;
    const { name, arguments: given, parameters, id } = call as Record<string, unknown>;
    const values = given ?? parameters ?? {};
    if (typeof name !== "string" || (typeof values !== "object" && typeof values !== "string")) return null;
    return {
      id: typeof id === "string" && id !== "" ? id : `call_${randomBytes(12).toString("hex")}`,
      name,
      arguments: typeof values === "string" ? values : JSON.stringify(values),
    };
  });
  return calls.length === 0 || calls.includes(null) ? null : (calls as ToolCall[]);
}

/** Length of the longest end of `text` that `mark` begins with. */
function beginning(text: string, mark: string): number {
  for (let length = Math.min(text.length, mark.length - 1); length > 0; length--) {
    if (text.endsWith(mark.slice(0, length))) return length;
  }
  return 0;
}
