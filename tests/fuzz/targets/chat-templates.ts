import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import { CHATML, ChatTemplate } from "../../../src/data/chat-template.ts";
import { loadTokenizer } from "../../../src/formats/tokenizer/load.ts";
import { mutateText } from "../mutate.ts";
import type { Random } from "../random.ts";
import type { FuzzTarget } from "../target.ts";

const KNOWN = (
  JSON.parse(readFileSync(join(PACKAGE_ROOT, "tests", "fixtures", "templates", "jinja2.json"), "utf8")) as {
    cases: { template: string }[];
  }
).cases.map(({ template }) => template);

const FILTERS =
  "upper lower title trim length tojson list sort unique reverse join first last sum batch(3) slice(3) indent(1000) center(999999) replace('a','aaaaaaaaaa') replace('','xxxx') striptags urlencode int float round abs string escape default('x') map('upper') select groupby('role') items dictsort truncate wordcount format pprint".split(
    " ",
  );
const METHODS =
  "upper() strip() split() split('a') splitlines() replace('a', 'aa' * 99) join(messages) format(1) items() keys() zfill(999999999) ljust(99999999) center(1e9) expandtabs(999999) encode() startswith('a') count('') find('a') append(1) update(a=1)"
    .split(" ")
    .filter((one) => one !== "");

/** An expression, sometimes one that asks for too much. */
function expression(random: Random, depth: number): string {
  const inner = () =>
    depth > 0 ? expression(random, depth - 1) : random.pick(["1", "'a'", "messages", "x", "none", "[]"]);
  switch (random.below(12)) {
    case 0:
      return random.pick(["10**9", "2**63", "9".repeat(400), "-1", "1e308*10", "0.1", "10**10**10"]);
    case 1:
      return `range(${random.pick(["10**9", "0, 99999", "99999", "-5", "1, 10**6, 7", inner()])})`;
    case 2:
      return `(${inner()} * ${random.pick(["10**6", "99999", inner()])})`;
    case 3:
      return `(${inner()} ${random.pick(["+", "-", "~", "**", "/", "//", "%", "==", "<", "in", "and"])} ${inner()})`;
    case 4:
      return `(${inner()} | ${random.pick(FILTERS)})`;
    case 5:
      return `(${inner()}).${random.pick(METHODS)}`;
    case 6:
      return `(${inner()})[${random.pick([inner(), "::-1", "0:10**9", ":", "-1", "'role'"])}]`;
    case 7:
      return `[${inner()}, ${inner()}]`;
    case 8:
      return `{'a': ${inner()}, ${inner()}: 1}`;
    case 9:
      return `namespace(x=${inner()})`;
    case 10:
      return `('%${random.pick(["s", "999999999d", ".999999999f", "*d", "x"])}' % ${inner()})`;
    default:
      return random.pick([
        "messages",
        "messages[0].content",
        "x",
        "loop.index",
        "cycler(1,2).next()",
        "strftime_now('%Y')",
        "self",
        "joiner()",
      ]);
  }
}

function statement(random: Random, depth: number): string {
  const body = () => (depth > 0 ? statement(random, depth - 1) : "a");
  switch (random.below(7)) {
    case 0:
    case 1:
      return `{% for x in ${expression(random, 2)} %}${body()}${body()}{% endfor %}`;
    case 2:
      return `{% set x = ${expression(random, 2)} %}${body()}`;
    case 3:
      return `{% macro m(x) %}${body()}{{ m(x) }}{% endmacro %}{{ m(${expression(random, 1)}) }}`;
    case 4:
      return `{% if ${expression(random, 1)} %}${body()}{% else %}${body()}{% endif %}`;
    case 5:
      return `{% set x = x ~ x ~ 'aa' %}{% for i in range(99999) %}${body()}{% endfor %}`;
    default:
      return `{{ ${expression(random, 3)} }}`;
  }
}

const MESSAGES = [
  { role: "system", content: "s" },
  { role: "user", content: "Hi <b>there</b>" },
  { role: "assistant", content: "Yes" },
];

export const chatTemplate: FuzzTarget = {
  name: "chat-template",
  make(random, dir) {
    const kind = random.below(3);
    const text =
      kind === 0
        ? mutateText(random, random.pick([CHATML, ...KNOWN]))
        : Array.from({ length: random.between(1, 3) }, () => statement(random, random.below(4))).join("\n");
    writeFileSync(join(dir, "template.jinja"), text);
  },
  async check(dir) {
    const tokenizer = await loadTokenizer(join(PACKAGE_ROOT, "tests", "fixtures", "tokens"));
    const source = readFileSync(join(dir, "template.jinja"), "utf8");
    const { tokens, labels } = new ChatTemplate(tokenizer, source, new Date(0)).encode(MESSAGES);
    if (tokens.length !== labels.length) throw new Error("as many labels as tokens were expected");
  },
};
