import { bind } from "./arguments.ts";
import { Budget } from "./budget.ts";
import { type FilterContext, filterNamed, isFilter } from "./filters.ts";
import { globals, Loop, unpacked } from "./globals.ts";
import { methodOf } from "./methods.ts";
import type { Arguments, Expression, Node, Parameters, Target } from "./nodes.ts";
import { arithmetic, compares, elementAt, notUndefined, sliced } from "./operators.ts";
import { type Marks, Output } from "./output.ts";
import { TESTS, testNamed } from "./tests.ts";
import { str } from "./text.ts";
import {
  type CallArguments,
  Callable,
  Dict,
  Float,
  fail,
  iterate,
  LoopLike,
  lookUp,
  Namespace,
  numberOf,
  spending,
  Tuple,
  truthy,
  typeName,
  Undefined,
  type Value,
} from "./values.ts";

/** Macros that call each other, loops that recurse. */
const MAX_CALL_DEPTH = 60;

type Flow = "next" | "break" | "continue";

class Scope {
  readonly names = new Map<string, Value>();
  readonly parent: Scope | null;
  constructor(parent: Scope | null) {
    this.parent = parent;
  }
  find(name: string): Value | undefined {
    for (let scope: Scope | null = this; scope !== null; scope = scope.parent) {
      const value = scope.names.get(name);
      if (value !== undefined) return value;
    }
    return undefined;
  }
}

/** Renders one tree once. Errors: TemplateError. */
export class Interpreter implements FilterContext {
  readonly budget = new Budget();
  readonly #tracked: ReadonlyMap<Value, number>;
  #output: Output;
  #depth = 0;
  /** Marks of what a macro or caller wrote last: kept where its text is printed as it is. */
  #written: { text: string; marks: Marks } | null = null;

  /** `tracked`: values whose passes of a loop are marked in the output, with the number they are marked by. */
  constructor(tracked: ReadonlyMap<Value, number>) {
    this.#tracked = tracked;
    spending.step = (count) => this.budget.step(count);
    this.#output = new Output(this.budget);
  }

  render(nodes: readonly Node[], names: ReadonlyMap<string, Value>): Output {
    const scope = new Scope(null);
    for (const [name, value] of [...globals(), ...names]) scope.names.set(name, value);
    this.#run(nodes, new Scope(scope));
    return this.#output;
  }

  #run(nodes: readonly Node[], scope: Scope): Flow {
    for (const node of nodes) {
      this.budget.step();
      const flow = this.#node(node, scope);
      if (flow !== "next") return flow;
    }
    return "next";
  }

  #node(node: Node, scope: Scope): Flow {
    switch (node.kind) {
      case "text":
        this.#output.write(node.text);
        return "next";
      case "print": {
        this.#written = null;
        const text = str(this.#value(node.expression, scope));
        const written = this.#written as { text: string; marks: Marks } | null;
        this.#output.write(text, node.expression.kind === "call" && written?.text === text ? written.marks : null);
        return "next";
      }
      case "if":
        for (const { test, body } of node.branches) {
          if (truthy(this.#value(test, scope))) return this.#run(body, scope);
        }
        return this.#run(node.otherwise, scope);
      case "for":
        return this.#for(node, this.#value(node.iterable, scope), scope, 0);
      case "set": {
        const value = this.#value(node.value, scope);
        const number = this.#tracked.get(value);
        if (number !== undefined) this.#output.names(number);
        this.#assign(node.target, value, scope);
        return "next";
      }
      case "set-block": {
        const { text } = this.#captured(() => this.#run(node.body, new Scope(scope)));
        this.#assign(node.target, node.filter === null ? text : this.#filtered(node.filter, text, scope), scope);
        return "next";
      }
      case "filter-block": {
        const { text } = this.#captured(() => this.#run(node.body, new Scope(scope)));
        this.#output.write(str(this.#filtered(node.filter, text, scope)));
        return "next";
      }
      case "macro":
        scope.names.set(node.name, this.#macro(node.name, node.parameters, node.body, scope));
        return "next";
      case "call-block": {
        const caller = this.#macro("caller", node.parameters, node.body, scope);
        const { callee, args } = node.call as Extract<Expression, { kind: "call" }>;
        const given = this.#arguments(args, scope);
        const named = new Map([...given.named, ["caller", caller] as const]);
        this.#output.write(str(this.#call(this.#value(callee, scope), { ...given, named })));
        return "next";
      }
      case "with": {
        const inner = new Scope(scope);
        const values = node.values.map((expression) => this.#value(expression, scope));
        for (const [index, target] of node.targets.entries()) this.#assign(target, values[index]!, inner);
        return this.#run(node.body, inner);
      }
      case "generation": {
        const begin = this.#output.length;
        const flow = this.#run(node.body, new Scope(scope));
        this.#output.mark({ kind: "generation", begin, end: this.#output.length });
        return flow;
      }
      default:
        return node.kind;
    }
  }

  #for(node: Extract<Node, { kind: "for" }>, iterable: Value, outer: Scope, depth: number): Flow {
    if (iterable instanceof Undefined === false && iterable === null) fail("'None' is not iterable");
    let items = iterate(iterable);
    if (node.test !== null) {
      items = items.filter((item) => {
        const inner = new Scope(outer);
        this.budget.step();
        this.#assign(node.target, item, inner);
        return truthy(this.#value(node.test!, inner));
      });
    }
    const recurse = (inner: Value, level: number) =>
      this.#deeper(() => this.#captured(() => this.#for(node, inner, outer, level)).text);
    const loop = new Loop(items, depth, node.recursive ? recurse : null);
    let flow: Flow = "next";
    for (const [index, item] of items.entries()) {
      this.budget.step();
      loop.moveTo(index);
      const scope = new Scope(outer);
      scope.names.set("loop", loop);
      this.#assign(node.target, item, scope);
      flow = this.#output.pass(this.#tracked.get(item) ?? null, () => this.#run(node.body, scope));
      if (flow === "break") break;
    }
    if (items.length === 0) return this.#run(node.otherwise, new Scope(outer));
    return "next";
  }

  #assign(target: Target, value: Value, scope: Scope): void {
    if (target.kind === "name") scope.names.set(target.name, value);
    else if (target.kind === "tuple") {
      const parts = unpacked(value, target.items.length);
      for (const [index, item] of target.items.entries()) this.#assign(item, parts[index]!, scope);
    } else {
      const object = scope.find(target.object);
      if (!(object instanceof Namespace)) fail(`${target.object}.${target.name} can't be set: it is no namespace`);
      (object as Namespace).attributes.set(target.name, value);
    }
  }

  #captured(write: () => unknown): { text: string; marks: Marks } {
    const outer = this.#output;
    this.#output = new Output(this.budget);
    try {
      write();
      return { text: this.#output.text(), marks: this.#output.marks };
    } finally {
      this.#output = outer;
    }
  }

  #deeper<T>(run: () => T): T {
    if (++this.#depth > MAX_CALL_DEPTH) fail(`calls nested over ${MAX_CALL_DEPTH} deep`);
    const result = run();
    this.#depth--;
    return result;
  }

  #macro(name: string, parameters: Parameters, body: readonly Node[], scope: Scope): Callable {
    const { names, defaults } = parameters;
    const firstDefault = names.length - defaults.length;
    return new Callable(name, ({ positional, named }) =>
      this.#deeper(() => {
        const inner = new Scope(scope);
        const rest = new Map(named);
        names.forEach((parameter, index) => {
          let value: Value | undefined = index < positional.length ? positional[index]! : rest.get(parameter);
          rest.delete(parameter);
          if (value === undefined) {
            value =
              index >= firstDefault
                ? this.#value(defaults[index - firstDefault]!, inner)
                : new Undefined(`parameter '${parameter}' was not provided`);
          }
          inner.names.set(parameter, value);
        });
        inner.names.set("varargs", new Tuple(positional.slice(names.length)));
        inner.names.set("caller", orUndefined(rest.get("caller"), "No caller defined"));
        rest.delete("caller");
        inner.names.set("kwargs", new Dict(rest));
        const captured = this.#captured(() => this.#run(body, inner));
        this.#written = captured;
        return captured.text;
      }),
    );
  }

  #value(expression: Expression, scope: Scope): Value {
    this.budget.step();
    switch (expression.kind) {
      case "constant":
        return expression.value;
      case "float":
        return new Float(expression.value);
      case "name":
        return orUndefined(scope.find(expression.name), `'${expression.name}'`);
      case "list":
        return expression.items.map((item) => this.#value(item, scope));
      case "tuple":
        return new Tuple(expression.items.map((item) => this.#value(item, scope)));
      case "dict":
        return new Dict(
          expression.items.map(([key, item]) => [this.#value(key, scope), this.#value(item, scope)] as const),
        );
      case "attribute":
        return this.attribute(this.#value(expression.object, scope), expression.name);
      case "item":
        return this.#item(this.#value(expression.object, scope), expression.index, scope);
      case "call":
        return this.#made(this.#call(this.#value(expression.callee, scope), this.#arguments(expression.args, scope)));
      case "filter":
        return this.#filtered(expression, null, scope);
      case "test": {
        const value = this.#value(expression.object, scope);
        return this.test(expression.name, value, this.#arguments(expression.args, scope));
      }
      case "unary": {
        const value = this.#value(expression.operand, scope);
        if (expression.operator === "not") return !truthy(value);
        notUndefined(value);
        const number =
          numberOf(value) ?? fail(`bad operand type for unary ${expression.operator}: '${typeName(value)}'`);
        const signed = expression.operator === "-" ? -number : number;
        return value instanceof Float ? new Float(signed) : signed + 0;
      }
      case "binary": {
        const left = this.#value(expression.left, scope);
        return arithmetic(expression.operator, left, this.#value(expression.right, scope), this.budget);
      }
      case "logic": {
        const left = this.#value(expression.left, scope);
        return truthy(left) === (expression.operator === "or") ? left : this.#value(expression.right, scope);
      }
      case "concat":
        return this.budget.text(expression.parts.map((part) => str(this.#value(part, scope))).join(""));
      case "compare": {
        let left = this.#value(expression.first, scope);
        return expression.rest.every(([operator, operand]) => {
          const right = this.#value(operand, scope);
          const holds = compares(operator, left, right);
          left = right;
          return holds;
        });
      }
      case "condition":
        if (truthy(this.#value(expression.test, scope))) return this.#value(expression.chosen, scope);
        return expression.otherwise === null
          ? new Undefined("the inline if-expression evaluated to false and no else section was defined")
          : this.#value(expression.otherwise, scope);
      case "slice":
        return fail("a slice stands outside of brackets");
    }
  }

  /** A filter's value; `inner` stands in where the chain wraps a block. */
  #filtered(expression: Expression, inner: string | null, scope: Scope): Value {
    if (expression.kind !== "filter") return this.#value(expression, scope);
    const { object, name, args } = expression;
    const value =
      object === null
        ? (inner ?? "")
        : inner === null
          ? this.#value(object, scope)
          : this.#filtered(object, inner, scope);
    return this.filter(name, value, this.#arguments(args, scope));
  }

  filter(name: string, value: Value, args: CallArguments): Value {
    this.budget.step();
    return this.#made(filterNamed(name)(value, args, this));
  }

  /** The result of a call, filter or slice is charged by its size, whether or not its maker asked before. */
  #made(value: Value): Value {
    if (typeof value === "string") this.budget.make(value.length);
    if (Array.isArray(value)) this.budget.items(value.length);
    return value;
  }

  test(name: string, value: Value, args: CallArguments): boolean {
    return testNamed(name)(value, args, { filters: isFilter, tests: (test) => Object.hasOwn(TESTS, test) });
  }

  #arguments({ positional, named, spread, spreadNamed }: Arguments, scope: Scope): CallArguments {
    const values = positional.map((expression) => this.#value(expression, scope));
    if (spread !== null) values.push(...iterate(this.#value(spread, scope)));
    const byName = new Map(named.map(([name, expression]) => [name, this.#value(expression, scope)] as const));
    if (spreadNamed !== null) {
      const more = this.#value(spreadNamed, scope);
      if (!(more instanceof Dict)) fail("** wants a mapping");
      for (const [key, value] of (more as Dict).entries) byName.set(str(key), value);
    }
    return { positional: values, named: byName };
  }

  #call(callee: Value, args: CallArguments): Value {
    if (callee instanceof Callable) return callee.call(args);
    if (callee instanceof Loop) return callee.call(bind("loop", args, ["iterable"], 1)[0]!);
    notUndefined(callee);
    return fail(`'${typeName(callee)}' object is not callable`);
  }

  /** `value.name`: Python's attribute where there is one, else the key. */
  attribute(value: Value, name: Value): Value {
    if (typeof name !== "string") return orUndefined(elementAt(value, name), `element ${str(name)}`);
    if (value instanceof Undefined) return fail(`${value.what} is undefined`);
    const attribute = this.#ownAttribute(value, name);
    const own = attribute === undefined && value instanceof Dict ? lookUp(value, name) : attribute;
    return orUndefined(own, `'${typeName(value)} object' has no attribute '${name}'`);
  }

  #ownAttribute(value: Value, name: string): Value | undefined {
    if (value instanceof LoopLike) return value.attribute(name);
    if (value instanceof Namespace) return value.attributes.get(name);
    return methodOf(value, name, this.budget);
  }

  /** `value[index]`: the key or element where there is one, else the attribute. */
  #item(value: Value, index: Expression, scope: Scope): Value {
    if (value instanceof Undefined) return fail(`${value.what} is undefined`);
    if (index.kind === "slice") {
      const bounds = index.bounds.map((bound) => (bound === null ? null : this.#value(bound, scope)));
      return this.#made(
        sliced(
          value,
          bounds.map((bound) =>
            bound === null ? null : (numberOf(bound) ?? fail("slice indices must be whole numbers")),
          ),
        ),
      );
    }
    const key = this.#value(index, scope);
    const found = value instanceof Dict ? lookUp(value, key) : elementAt(value, key);
    if (found !== undefined) return found;
    const own = typeof key === "string" ? this.#ownAttribute(value, key) : undefined;
    return orUndefined(own, `'${typeName(value)} object' has no item ${str(key)}`);
  }
}

function orUndefined(value: Value | undefined, what: string): Value {
  return value === undefined ? new Undefined(what) : value;
}
