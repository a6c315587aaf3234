import { SPACE, strip } from "./text.ts";
import { fail } from "./values.ts";

export type TokenKind =
  | "text"
  | "print-begin"
  | "print-end"
  | "block-begin"
  | "block-end"
  | "name"
  | "string"
  | "integer"
  | "float"
  | "operator"
  | "end";

export interface Token {
  readonly kind: TokenKind;
  readonly text: string;
  readonly line: number;
}

const S = `[${SPACE}]`;
/** The next tag of any kind, with the sign that controls the white space before it. */
const TAG = /\{([{%#])([-+]?)/g;
const RAW_BEGIN = new RegExp(`^${S}*raw${S}*(?:-%\\}${S}*|%\\})`);
const RAW_END = new RegExp(`\\{%([-+]?)${S}*endraw${S}*(?:\\+%\\}|-%\\}${S}*|%\\}\\n?)`, "g");
const SPACES = new RegExp(`^${S}+`);
const NUMBER = /^(?:\d[\d_]*(?:\.\d[\d_]*)?[eE][+-]?\d[\d_]*|\d[\d_]*\.\d[\d_]*)/;
const INTEGER = /^(?:0[bB][01_]+|0[oO][0-7_]+|0[xX][\da-fA-F_]+|\d[\d_]*)/;
const NAME = /^[\p{L}\p{Nl}_][\p{L}\p{Nl}\p{Mn}\p{Mc}\p{Nd}\p{Pc}]*/u;
const STRING = /^(?:'[^'\\]*(?:\\[\s\S][^'\\]*)*'|"[^"\\]*(?:\\[\s\S][^"\\]*)*")/;
const OPERATOR = /^(?:\/\/|\*\*|==|!=|>=|<=|[-+/*%~[\](){}><=.:|,;])/;

/**
 * A template's tokens under Jinja's rules with trim_blocks and lstrip_blocks (as transformers sets them): the newline behind
 * a block or comment goes, and so does white space before one at the start of its line. Newlines of any kind are one "\n";
 * a single one at the template's end goes.
 */
export function tokenize(source: string): Token[] {
  let text = source.replace(/\r\n?/g, "\n");
  if (text.endsWith("\n")) text = text.slice(0, -1);
  return new Lexer(text).run();
}

class Lexer {
  readonly #source: string;
  readonly #tokens: Token[] = [];
  #at = 0;
  /** The last match ended with a newline, or nothing was matched yet. */
  #lineStarts = true;

  constructor(source: string) {
    this.#source = source;
  }

  run(): Token[] {
    while (this.#at < this.#source.length) {
      TAG.lastIndex = this.#at;
      const tag = TAG.exec(this.#source);
      if (tag === null) {
        this.#push("text", this.#source.slice(this.#at));
        this.#at = this.#source.length;
        break;
      }
      const [whole, type, sign] = tag as unknown as [string, string, string];
      const text = this.#source.slice(this.#at, tag.index);
      this.#pushText(text, sign, type !== "{");
      this.#lineStarts = false;
      this.#at = tag.index + whole.length;
      if (type === "#") this.#comment();
      else if (type === "{") this.#inside("print-begin", "print-end", "}}");
      else if (!this.#raw()) this.#inside("block-begin", "block-end", "%}");
    }
    this.#push("end", "");
    return this.#tokens;
  }

  #push(kind: TokenKind, text: string): void {
    if (kind === "text" && text === "") return;
    this.#tokens.push({ kind, text, line: this.#line });
  }

  #lastLine = 1;
  #lastAt = 0;
  get #line(): number {
    for (let at = this.#lastAt; at < this.#at; at++) if (this.#source[at] === "\n") this.#lastLine++;
    this.#lastAt = Math.max(this.#lastAt, this.#at);
    return this.#lastLine;
  }

  #pushText(text: string, sign: string, strips: boolean): void {
    let kept = text;
    if (sign === "-") kept = strip(text, null, false, true);
    else if (sign !== "+" && strips) {
      const lineStart = text.lastIndexOf("\n") + 1;
      if ((lineStart > 0 || this.#lineStarts) && strip(text.slice(lineStart), null, true, false) === "") {
        kept = text.slice(0, lineStart);
      }
    }
    this.#push("text", kept);
  }

  #comment(): void {
    const end = this.#source.indexOf("#}", this.#at);
    if (end < 0) fail(`line ${this.#line}: a comment is not closed`);
    const before = end > this.#at ? this.#source[end - 1] : "";
    this.#at = end + 2;
    this.#skipBehind(before === "-", before !== "+" && before !== "-");
  }

  /** `-`: all white space behind a tag goes; else one newline where `newline` says so. */
  #skipBehind(all: boolean, newline: boolean): void {
    const spaces = all ? SPACES.exec(this.#source.slice(this.#at)) : null;
    if (spaces !== null) this.#at += spaces[0].length;
    else if (newline && this.#source[this.#at] === "\n") this.#at++;
    this.#lineStarts = this.#source[this.#at - 1] === "\n";
  }

  #raw(): boolean {
    const begin = RAW_BEGIN.exec(this.#source.slice(this.#at));
    if (begin === null) return false;
    this.#at += begin[0].length;
    this.#lineStarts = begin[0].endsWith("\n");
    RAW_END.lastIndex = this.#at;
    const end = RAW_END.exec(this.#source);
    if (end === null) fail(`line ${this.#line}: a raw block is not closed`);
    this.#pushText(this.#source.slice(this.#at, end.index), end[1]!, true);
    this.#at = end.index + end[0].length;
    this.#lineStarts = end[0].endsWith("\n");
    return true;
  }

  #inside(begin: TokenKind, end: TokenKind, close: string): void {
    this.#push(begin, "");
    const open: string[] = [];
    for (;;) {
      if (this.#at >= this.#source.length) fail(`line ${this.#line}: a tag is not closed with ${close}`);
      const rest = this.#source.slice(this.#at, this.#at + 65536);
      if (open.length === 0) {
        const sign = /^[-+]/.test(rest) && rest.startsWith(close, 1) ? rest[0]! : "";
        if (rest.startsWith(close, sign.length)) {
          this.#at += sign.length + close.length;
          this.#skipBehind(sign === "-", end === "block-end" && sign !== "+");
          this.#push(end, "");
          return;
        }
      }
      this.#token(rest, open);
    }
  }

  #token(rest: string, open: string[]): unknown {
    const spaces = SPACES.exec(rest);
    if (spaces !== null) {
      this.#at += spaces[0].length;
      return null;
    }
    const take = (kind: TokenKind, found: string, text = found) => {
      this.#push(kind, text);
      this.#at += found.length;
    };
    const float = NUMBER.exec(rest);
    // `a.0.1` is two items, not a number behind a dot.
    if (float !== null && this.#tokens.at(-1)?.text !== ".")
      return take("float", float[0], float[0].replaceAll("_", ""));
    const integer = INTEGER.exec(rest);
    if (integer !== null) return take("integer", integer[0], integer[0].replaceAll("_", ""));
    const name = NAME.exec(rest);
    if (name !== null) return take("name", name[0]);
    const string = STRING.exec(this.#source.slice(this.#at));
    if (string !== null) return take("string", string[0], unescaped(string[0].slice(1, -1)));
    const operator = OPERATOR.exec(rest)?.[0];
    if (operator === undefined) return fail(`line ${this.#line}: unexpected character ${JSON.stringify(rest[0])}`);
    if ("([{".includes(operator)) open.push(operator);
    else if (")]}".includes(operator)) {
      const partner = { ")": "(", "]": "[", "}": "{" }[operator]!;
      if (open.pop() !== partner) fail(`line ${this.#line}: unexpected "${operator}"`);
    }
    return take("operator", operator);
  }
}

const SIMPLE: Readonly<Record<string, string>> = {
  "\n": "",
  "\\": "\\",
  "'": "'",
  '"': '"',
  a: "\x07",
  b: "\b",
  f: "\f",
  n: "\n",
  r: "\r",
  t: "\t",
  v: "\v",
};

/** Python's escapes in a string literal; an unknown one stands as it is written. */
function unescaped(text: string): string {
  if (!text.includes("\\")) return text;
  return text.replace(
    /\\(?:([\n\\'"abfnrtv])|([0-7]{1,3})|x([\da-fA-F]{2})|u([\da-fA-F]{4})|U([\da-fA-F]{8}))/g,
    (_, simple?: string, octal?: string, ...hex: (string | undefined)[]) => {
      if (simple !== undefined) return SIMPLE[simple]!;
      if (octal !== undefined) return String.fromCodePoint(Number.parseInt(octal, 8));
      const code = Number.parseInt(hex.slice(0, 3).find((digits) => digits !== undefined)!, 16);
      if (code > 0x10ffff) fail(`the character U+${code.toString(16)} does not exist`);
      return String.fromCodePoint(code);
    },
  );
}
