import type { Token, TokenKind } from "./lexer.ts";
import type { Arguments, Expression } from "./nodes.ts";
import { fail } from "./values.ts";

/** Greatest depth of nested brackets, statements and operators: far above any real template, far below the call stack. */
const MAX_NESTING = 100;

const NO_ARGUMENTS: Arguments = { positional: [], named: [], spread: null, spreadNamed: null };

/** Jinja's expressions, with its own order of precedence: `~` binds tighter than `+`, filters tighter than `**`. */
export class ExpressionParser {
  readonly #tokens: readonly Token[];
  #at = 0;
  #depth = 0;

  constructor(tokens: readonly Token[]) {
    this.#tokens = tokens;
  }

  protected peek(ahead = 0): Token {
    return this.#tokens[Math.min(this.#at + ahead, this.#tokens.length - 1)]!;
  }

  protected next(): Token {
    const token = this.peek();
    this.#at++;
    return token;
  }

  protected failure(message: string): never {
    return fail(`line ${this.peek().line}: ${message}`);
  }

  protected unexpected(expected: string): never {
    const { kind, text } = this.peek();
    return this.failure(`expected ${expected}, got ${text === "" ? kind : `"${text}"`}`);
  }

  protected isOperator(text: string): boolean {
    const token = this.peek();
    return token.kind === "operator" && token.text === text;
  }

  protected isName(text: string): boolean {
    const token = this.peek();
    return token.kind === "name" && token.text === text;
  }

  protected expectOperator(text: string): void {
    if (!this.isOperator(text)) this.unexpected(`"${text}"`);
    this.next();
  }

  protected expectKind(kind: TokenKind, what: string): Token {
    if (this.peek().kind !== kind) this.unexpected(what);
    return this.next();
  }

  protected nested<T>(parse: () => T): T {
    if (++this.#depth > MAX_NESTING) this.failure(`nested over ${MAX_NESTING} deep`);
    const parsed = parse();
    this.#depth--;
    return parsed;
  }

  /** One expression, or several separated by commas as a tuple. `conditions`: whether `a if b else c` is allowed. */
  protected tuple(conditions = true, ends: readonly string[] = [], explicit = false): Expression {
    const items: Expression[] = [];
    let isTuple = false;
    for (;;) {
      if (items.length > 0) {
        if (!this.isOperator(",")) break;
        this.next();
        isTuple = true;
      }
      const { kind, text } = this.peek();
      const ended = kind.endsWith("-end") || this.isOperator(")") || (kind === "name" && ends.includes(text));
      if (ended) break;
      items.push(conditions ? this.expression() : this.#or());
    }
    if (items.length === 1 && !isTuple) return items[0]!;
    if (items.length === 0 && !explicit) this.unexpected("an expression");
    return { kind: "tuple", items };
  }

  protected expression(): Expression {
    return this.nested(() => {
      let expression = this.#or();
      while (this.isName("if")) {
        this.next();
        const test = this.#or();
        let otherwise: Expression | null = null;
        if (this.isName("else")) {
          this.next();
          otherwise = this.expression();
        }
        expression = { kind: "condition", test, chosen: expression, otherwise };
      }
      return expression;
    });
  }

  #or(): Expression {
    let left = this.#and();
    while (this.isName("or")) {
      this.next();
      left = { kind: "logic", operator: "or", left, right: this.#and() };
    }
    return left;
  }

  #and(): Expression {
    let left = this.#not();
    while (this.isName("and")) {
      this.next();
      left = { kind: "logic", operator: "and", left, right: this.#not() };
    }
    return left;
  }

  #not(): Expression {
    if (!this.isName("not")) return this.#comparison();
    this.next();
    return { kind: "unary", operator: "not", operand: this.nested(() => this.#not()) };
  }

  #comparison(): Expression {
    const first = this.#sum();
    const rest: (readonly [string, Expression])[] = [];
    for (;;) {
      const { kind, text } = this.peek();
      if (kind === "operator" && ["==", "!=", "<", "<=", ">", ">="].includes(text)) {
        this.next();
        rest.push([text, this.#sum()]);
      } else if (this.isName("in")) {
        this.next();
        rest.push(["in", this.#sum()]);
      } else if (this.isName("not") && this.peek(1).kind === "name" && this.peek(1).text === "in") {
        this.next();
        this.next();
        rest.push(["not in", this.#sum()]);
      } else return rest.length === 0 ? first : { kind: "compare", first, rest };
    }
  }

  #binary(operators: readonly string[], operand: () => Expression): Expression {
    let left = operand();
    while (this.peek().kind === "operator" && operators.includes(this.peek().text)) {
      const operator = this.next().text;
      left = { kind: "binary", operator, left, right: operand() };
    }
    return left;
  }

  #sum(): Expression {
    return this.#binary(["+", "-"], () => this.#concat());
  }

  #concat(): Expression {
    const parts = [this.#product()];
    while (this.isOperator("~")) {
      this.next();
      parts.push(this.#product());
    }
    return parts.length === 1 ? parts[0]! : { kind: "concat", parts };
  }

  #product(): Expression {
    return this.#binary(["*", "/", "//", "%"], () => this.#binary(["**"], () => this.#unary(true)));
  }

  #unary(filters: boolean): Expression {
    return this.nested(() => {
      let expression: Expression;
      if (this.isOperator("-") || this.isOperator("+")) {
        const operator = this.next().text as "-" | "+";
        expression = { kind: "unary", operator, operand: this.#unary(false) };
      } else expression = this.#primary();
      expression = this.#postfix(expression);
      return filters ? this.filters(expression, false)! : expression;
    });
  }

  #primary(): Expression {
    const token = this.next();
    switch (token.kind) {
      case "name":
        if (["true", "True"].includes(token.text)) return { kind: "constant", value: true };
        if (["false", "False"].includes(token.text)) return { kind: "constant", value: false };
        if (["none", "None"].includes(token.text)) return { kind: "constant", value: null };
        return { kind: "name", name: token.text };
      case "string": {
        let value = token.text;
        while (this.peek().kind === "string") value += this.next().text;
        return { kind: "constant", value };
      }
      case "integer": {
        const value = Number(token.text.replace(/^0+(?=\d)/, ""));
        if (!Number.isSafeInteger(value)) this.failure(`the number ${token.text} is too large`);
        return { kind: "constant", value };
      }
      case "float":
        return { kind: "float", value: Number(token.text) };
      case "operator":
        if (token.text === "(") {
          const inner = this.tuple(true, [], true);
          this.expectOperator(")");
          return inner;
        }
        if (token.text === "[") return { kind: "list", items: this.#items("]") };
        if (token.text === "{") return this.#dict();
    }
    this.#at--;
    return this.unexpected("an expression");
  }

  #items(close: string): Expression[] {
    const items: Expression[] = [];
    while (!this.isOperator(close)) {
      if (items.length > 0) this.expectOperator(",");
      if (this.isOperator(close)) break;
      items.push(this.expression());
    }
    this.next();
    return items;
  }

  #dict(): Expression {
    const items: [Expression, Expression][] = [];
    while (!this.isOperator("}")) {
      if (items.length > 0) this.expectOperator(",");
      if (this.isOperator("}")) break;
      const key = this.expression();
      this.expectOperator(":");
      items.push([key, this.expression()]);
    }
    this.next();
    return { kind: "dict", items };
  }

  #postfix(start: Expression): Expression {
    let object = start;
    for (;;) {
      if (this.isOperator(".")) {
        this.next();
        const token = this.next();
        if (token.kind === "name") object = { kind: "attribute", object, name: token.text };
        else if (token.kind === "integer") {
          object = { kind: "item", object, index: { kind: "constant", value: Number(token.text) } };
        } else {
          this.#at--;
          this.unexpected("an attribute's name");
        }
      } else if (this.isOperator("[")) {
        this.next();
        object = { kind: "item", object, index: this.#subscript() };
      } else if (this.isOperator("(")) object = { kind: "call", callee: object, args: this.#arguments() };
      else return object;
    }
  }

  #subscript(): Expression {
    const indices: Expression[] = [];
    let commas = 0;
    while (!this.isOperator("]")) {
      if (indices.length > 0) {
        this.expectOperator(",");
        commas++;
      }
      if (this.isOperator("]")) break;
      indices.push(this.#index());
    }
    if (indices.length === 0) this.unexpected("an index");
    this.next();
    return commas === 0 ? indices[0]! : { kind: "tuple", items: indices };
  }

  #index(): Expression {
    const ends = () => this.isOperator(":") || this.isOperator("]") || this.isOperator(",");
    const bounds: (Expression | null)[] = [ends() ? null : this.expression()];
    if (!this.isOperator(":")) return bounds[0] ?? this.unexpected("an index");
    while (this.isOperator(":") && bounds.length < 3) {
      this.next();
      bounds.push(ends() ? null : this.expression());
    }
    return { kind: "slice", bounds };
  }

  #arguments(): Arguments {
    const positional: Expression[] = [];
    const named: [string, Expression][] = [];
    let spread: Expression | null = null;
    let spreadNamed: Expression | null = null;
    this.expectOperator("(");
    let first = true;
    while (!this.isOperator(")")) {
      if (!first) this.expectOperator(",");
      first = false;
      if (this.isOperator(")")) break;
      if (this.isOperator("*")) {
        this.next();
        spread = this.expression();
      } else if (this.isOperator("**")) {
        this.next();
        spreadNamed = this.expression();
      } else if (this.peek().kind === "name" && this.peek(1).kind === "operator" && this.peek(1).text === "=") {
        const name = this.next().text;
        this.next();
        named.push([name, this.expression()]);
      } else positional.push(this.expression());
    }
    this.next();
    return { positional, named, spread, spreadNamed };
  }

  /** Filters, tests and calls after an expression; null as `object`: the text that a filter block or set block wraps. */
  protected filters(object: Expression | null, inline: boolean): Expression | null {
    let current = object;
    let first = inline;
    for (;;) {
      if (first || this.isOperator("|")) {
        if (!first) this.next();
        first = false;
        const name = this.#dottedName("a filter's name");
        const args = this.isOperator("(") ? this.#arguments() : NO_ARGUMENTS;
        current = { kind: "filter", object: current, name, args };
      } else if (current !== null && this.isName("is")) current = this.#test(current);
      else if (current !== null && this.isOperator("("))
        current = { kind: "call", callee: current, args: this.#arguments() };
      else return current;
    }
  }

  #dottedName(what: string): string {
    let name = this.expectKind("name", what).text;
    while (this.isOperator(".")) {
      this.next();
      name += `.${this.expectKind("name", what).text}`;
    }
    return name;
  }

  #test(object: Expression): Expression {
    this.next();
    const negated = this.isName("not");
    if (negated) this.next();
    const name = this.#dottedName("a test's name");
    let args = NO_ARGUMENTS;
    const { kind, text } = this.peek();
    if (this.isOperator("(")) args = this.#arguments();
    else if (
      ["name", "string", "integer", "float"].includes(kind)
        ? !["else", "or", "and"].includes(text)
        : "[{".includes(text || " ")
    ) {
      if (this.isName("is")) this.failure("tests can't be chained with is");
      if (!(kind === "name" && ["if", "recursive", "in", "not"].includes(text))) {
        args = { ...NO_ARGUMENTS, positional: [this.#postfix(this.#primary())] };
      }
    }
    const test: Expression = { kind: "test", object, name, args };
    return negated ? { kind: "unary", operator: "not", operand: test } : test;
  }
}
