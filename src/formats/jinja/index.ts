import { asText, bind } from "./arguments.ts";
import { Interpreter } from "./interpreter.ts";
import type { Node } from "./nodes.ts";
import type { Marks } from "./output.ts";
import { parseTemplate } from "./parser.ts";
import { strftime } from "./strftime.ts";
import { Callable, fromJson, TemplateError, type Value } from "./values.ts";

export type { Mark } from "./output.ts";
export { TemplateError } from "./values.ts";

export interface Rendering {
  readonly text: string;
  /** Stretches that `{% generation %}` blocks wrote, and passes over messages, by the message's index. */
  readonly marks: Marks;
}

/**
 * A chat template: Jinja as transformers sets it up (jinja2's immutable sandbox, trim_blocks, lstrip_blocks, loop controls,
 * tojson without HTML escapes, raise_exception, strftime_now, generation blocks). Text behaves as Python's. What a template
 * may spend is bounded: steps, sizes, depth. Followed: jinja2 3.1 and transformers' chat_template_utils.
 */
export class JinjaTemplate {
  readonly #nodes: readonly Node[];

  /** Error: TemplateError where the source can't be parsed. */
  constructor(source: string) {
    this.#nodes = parseTemplate(source);
  }

  /**
   * `values`: JSON-like values by the names that the template knows them by; `messages` among them is tracked. `now`: what
   * strftime_now writes. Error: TemplateError, with the template's own words where it raises an exception.
   */
  render(values: Readonly<Record<string, unknown>>, now: Date): Rendering {
    const names = new Map<string, Value>(Object.entries(values).map(([name, value]) => [name, fromJson(value)]));
    names.set(
      "strftime_now",
      new Callable("strftime_now", (args) =>
        strftime(now, asText("strftime_now", bind("strftime_now", args, ["format"], 1)[0])),
      ),
    );
    const messages = names.get("messages");
    const tracked = new Map(Array.isArray(messages) ? messages.map((message, index) => [message, index] as const) : []);
    try {
      const output = new Interpreter(tracked).render(this.#nodes, names);
      return { text: output.text(), marks: output.marks };
    } catch (error) {
      // An error that the limits did not foresee counts as the template's fault too.
      if (error instanceof RangeError) throw new TemplateError(`the template asks for too much: ${error.message}`);
      throw error;
    }
  }
}
