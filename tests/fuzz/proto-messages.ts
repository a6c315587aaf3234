import { join } from "node:path";
import { loadSync } from "@grpc/proto-loader";
import { PACKAGE_ROOT } from "../../src/common/root.ts";
import { EXTREME_NUMBERS, STRANGE_TEXTS } from "./mutate.ts";
import type { Random } from "./random.ts";

interface Field {
  readonly name: string;
  readonly label: string;
  readonly type: string;
  readonly typeName: string;
  readonly oneofIndex: number;
  readonly oneOf: boolean;
}

const definition = loadSync(["pipelora/v1/control.proto", "pipelora/v1/tensors.proto"], {
  includeDirs: [join(PACKAGE_ROOT, "proto")],
});

function fieldsOf(message: string): readonly Field[] {
  const described = definition[`pipelora.v1.${message}`] as unknown as {
    type: { field: Field[]; oneofDecl: { name: string }[] };
  };
  // A field in no oneof has index 0 here as well: the first oneof of ours is "body", whose fields have a message's type.
  const hasBody = described.type.oneofDecl.some(({ name }) => name === "body");
  return described.type.field.map((field) => ({ ...field, oneOf: hasBody && field.type === "TYPE_MESSAGE" }));
}

/** Kinds of a message with a oneof. */
export function kindsOf(message: string): readonly string[] {
  return fieldsOf(message)
    .filter(({ oneOf }) => oneOf)
    .map(({ name }) => camel(name));
}

const camel = (name: string) => name.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());

/** A message of the proto with values that nobody sends; `kind`: which of its oneof. */
export function strangeMessage(random: Random, message: string, kind: string | null = null, depth = 0): object {
  const value: Record<string, unknown> = {};
  for (const field of fieldsOf(message)) {
    const name = camel(field.name);
    if (field.oneOf ? name !== kind : depth > 4 || random.chance(0.3)) continue;
    const one = () => strangeField(random, field, depth);
    value[name] = field.label === "LABEL_REPEATED" ? Array.from({ length: random.pick([0, 1, 3, 100]) }, one) : one();
  }
  return value;
}

function strangeField(random: Random, { type, typeName }: Field, depth: number): unknown {
  const whole = (most: number) => Math.min(most, Math.max(0, Math.trunc(random.pick(EXTREME_NUMBERS))));
  switch (type) {
    case "TYPE_MESSAGE":
      return strangeMessage(random, typeName.split(".").at(-1)!, null, depth + 1);
    case "TYPE_STRING":
      return random.chance(0.1) ? "x".repeat(100_000) : random.pick(STRANGE_TEXTS);
    case "TYPE_BYTES":
      return random.bytes(random.pick([0, 1, 7, 64, 1000]));
    case "TYPE_BOOL":
      return random.chance(0.5);
    case "TYPE_DOUBLE":
      return random.pick([...EXTREME_NUMBERS, Number.NaN, Number.POSITIVE_INFINITY]);
    case "TYPE_UINT32":
      return whole(2 ** 32 - 1);
    default:
      return whole(2 ** 53);
  }
}
