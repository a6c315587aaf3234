import { ExpressionParser } from "./expression-parser.ts";
import { tokenize } from "./lexer.ts";
import type { Expression, Node, Parameters, Target } from "./nodes.ts";

const NOT_OFFERED = ["include", "import", "from", "extends", "block", "autoescape", "do", "trans"];

/** A template's source as a tree. Error: TemplateError with the line where it is no Jinja, or nested too deeply. */
export function parseTemplate(source: string): readonly Node[] {
  return new TemplateParser(tokenize(source)).template();
}

class TemplateParser extends ExpressionParser {
  /** Loops around the statement at hand: break and continue need one. */
  #loops = 0;

  template(): readonly Node[] {
    const nodes = this.#body([]);
    if (this.peek().kind !== "end") this.unexpected("the template's end");
    return nodes;
  }

  /** Nodes up to a block tag named in `ends`, whose name is left to be read. */
  #body(ends: readonly string[]): Node[] {
    return this.nested(() => {
      const nodes: Node[] = [];
      for (;;) {
        const token = this.peek();
        if (token.kind === "text") nodes.push({ kind: "text", text: this.next().text });
        else if (token.kind === "print-begin") {
          this.next();
          nodes.push({ kind: "print", expression: this.tuple() });
          this.expectKind("print-end", '"}}"');
        } else if (token.kind === "block-begin") {
          const name = this.peek(1).text;
          if (ends.includes(name)) {
            this.next();
            return nodes;
          }
          this.next();
          nodes.push(this.#statement());
        } else if (ends.length > 0) {
          return this.unexpected(`{% ${ends.join(" %} or {% ")} %}`);
        } else return nodes;
      }
    });
  }

  #endTag(): void {
    this.expectKind("block-end", '"%}"');
  }

  /** A body whose end tag is read too. */
  #blockUntil(end: string): Node[] {
    this.#endTag();
    const body = this.#body([end]);
    this.next();
    if (this.peek().kind === "name") this.next();
    this.#endTag();
    return body;
  }

  #statement(): Node {
    const name = this.expectKind("name", "a statement's name").text;
    switch (name) {
      case "if":
        return this.#if();
      case "for":
        return this.#for();
      case "set":
        return this.#set();
      case "macro": {
        const macro = this.expectKind("name", "the macro's name").text;
        const parameters = this.#parameters();
        return { kind: "macro", name: macro, parameters, body: this.#outsideLoops(() => this.#blockUntil("endmacro")) };
      }
      case "call": {
        const parameters = this.isOperator("(") ? this.#parameters() : { names: [], defaults: [] };
        const call = this.expression();
        if (call.kind !== "call") this.unexpected("a call");
        return { kind: "call-block", call, parameters, body: this.#outsideLoops(() => this.#blockUntil("endcall")) };
      }
      case "filter": {
        const filter = this.filters(null, true)!;
        return { kind: "filter-block", filter, body: this.#blockUntil("endfilter") };
      }
      case "with":
        return this.#with();
      case "generation":
        return { kind: "generation", body: this.#blockUntil("endgeneration") };
      case "break":
      case "continue":
        if (this.#loops === 0) this.failure(`"${name}" outside of a loop`);
        this.#endTag();
        return { kind: name };
      default:
        return this.failure(
          NOT_OFFERED.includes(name) ? `"${name}" is not offered to chat templates` : `unknown tag "${name}"`,
        );
    }
  }

  #outsideLoops<T>(parse: () => T): T {
    const loops = this.#loops;
    this.#loops = 0;
    const parsed = parse();
    this.#loops = loops;
    return parsed;
  }

  #if(): Node {
    const branches: { test: Expression; body: Node[] }[] = [];
    let otherwise: Node[] = [];
    let tag = "if";
    while (tag === "if" || tag === "elif") {
      const test = this.tuple(false);
      this.#endTag();
      branches.push({ test, body: this.#body(["elif", "else", "endif"]) });
      tag = this.next().text;
    }
    if (tag === "else") {
      this.#endTag();
      otherwise = this.#body(["endif"]);
      this.next();
    }
    this.#endTag();
    return { kind: "if", branches, otherwise };
  }

  #for(): Node {
    const target = this.#target(false);
    if (!this.isName("in")) this.unexpected('"in"');
    this.next();
    const iterable = this.tuple(false, ["recursive"]);
    let test: Expression | null = null;
    if (this.isName("if")) {
      this.next();
      test = this.expression();
    }
    const recursive = this.isName("recursive");
    if (recursive) this.next();
    this.#endTag();
    this.#loops++;
    const body = this.#body(["endfor", "else"]);
    this.#loops--;
    let otherwise: Node[] = [];
    if (this.next().text === "else") {
      this.#endTag();
      otherwise = this.#body(["endfor"]);
      this.next();
    }
    this.#endTag();
    return { kind: "for", target, iterable, test, recursive, body, otherwise };
  }

  #set(): Node {
    const target = this.#target(true);
    if (this.isOperator("=")) {
      this.next();
      const value = this.tuple();
      this.#endTag();
      return { kind: "set", target, value };
    }
    const filter = this.isOperator("|") ? this.filters(null, false) : null;
    return { kind: "set-block", target, filter, body: this.#outsideLoops(() => this.#blockUntil("endset")) };
  }

  #with(): Node {
    const targets: Target[] = [];
    const values: Expression[] = [];
    while (this.peek().kind !== "block-end") {
      if (targets.length > 0) this.expectOperator(",");
      targets.push(this.#singleTarget(false));
      this.expectOperator("=");
      values.push(this.expression());
    }
    return { kind: "with", targets, values, body: this.#blockUntil("endwith") };
  }

  /** Names that a `for` or `set` writes to; `attributes`: ns.name too. */
  #target(attributes: boolean): Target {
    const items = [this.#singleTarget(attributes)];
    let isTuple = false;
    while (this.isOperator(",")) {
      isTuple = true;
      this.next();
      if (this.peek().kind !== "name" && !this.isOperator("(")) break;
      items.push(this.#singleTarget(attributes));
    }
    return isTuple ? { kind: "tuple", items } : items[0]!;
  }

  #singleTarget(attributes: boolean): Target {
    if (this.isOperator("(")) {
      this.next();
      const inner = this.nested(() => this.#target(attributes));
      this.expectOperator(")");
      return inner;
    }
    const name = this.expectKind("name", "a name to write to").text;
    if (attributes && this.isOperator(".")) {
      this.next();
      return { kind: "attribute", object: name, name: this.expectKind("name", "an attribute's name").text };
    }
    return { kind: "name", name };
  }

  #parameters(): Parameters {
    const names: string[] = [];
    const defaults: Expression[] = [];
    this.expectOperator("(");
    while (!this.isOperator(")")) {
      if (names.length > 0) this.expectOperator(",");
      if (this.isOperator(")")) break;
      names.push(this.expectKind("name", "a parameter's name").text);
      if (this.isOperator("=")) {
        this.next();
        defaults.push(this.expression());
      } else if (defaults.length > 0) this.failure("a parameter without default follows one that has a default");
    }
    this.next();
    return { names, defaults };
  }
}
