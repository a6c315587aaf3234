import { asInteger, asText, bind } from "./arguments.ts";
import type { Filter, FilterContext } from "./filters.ts";
import { arithmetic } from "./operators.ts";
import { str } from "./text.ts";
import { compare, Dict, equal, fail, iterate, Tuple, truthy, Undefined, type Value } from "./values.ts";

/** A value's part named "a.b.0"; null as `name`: the value itself. */
function attributeGetter(name: Value | undefined, context: FilterContext, standard?: Value): (value: Value) => Value {
  if (name === undefined || name === null) return (value) => value;
  const steps =
    typeof name === "string" ? name.split(".").map((step) => (/^\d+$/.test(step) ? Number(step) : step)) : [name];
  return (value) => {
    let current = value;
    for (const step of steps) {
      current = context.attribute(current, step);
      if (current instanceof Undefined && standard !== undefined) return standard;
    }
    return current;
  };
}

const folded = (value: Value): Value => (typeof value === "string" ? value.toLowerCase() : value);
const orderBy = (get: (value: Value) => Value, sensitive: boolean) => (a: Value, b: Value) =>
  sensitive ? compare(get(a), get(b)) : compare(folded(get(a)), folded(get(b)));

const chooser =
  (name: string, keeps: boolean, byAttribute: boolean): Filter =>
  (value, { positional, named }, context) => {
    const [attribute, test, ...rest] = byAttribute ? positional : [null, ...positional];
    if (byAttribute && attribute === undefined) fail(`${name} needs an attribute's name`);
    const get = attributeGetter(byAttribute ? attribute : null, context);
    return iterate(value).filter((item) => {
      context.budget.step();
      const chosen = get(item);
      const passes =
        test === undefined ? truthy(chosen) : context.test(asText(name, test), chosen, { positional: rest, named });
      return passes === keeps;
    });
  };

const map: Filter = (value, { positional, named }, context) => {
  if (positional.length === 0) {
    const standard = named.get("default");
    const attribute = named.get("attribute") ?? fail("map needs a filter or an attribute");
    return iterate(value).map(attributeGetter(attribute, context, standard));
  }
  const [filter, ...rest] = positional;
  return iterate(value).map((item) => context.filter(asText("map", filter), item, { positional: rest, named }));
};

const extreme =
  (name: string, sign: number): Filter =>
  (value, args, context) => {
    const [sensitive, attribute] = bind(name, args, ["case_sensitive", "attribute"]);
    const items = iterate(value);
    const order = orderBy(attributeGetter(attribute, context), sensitive !== undefined && truthy(sensitive));
    if (items.length === 0) return new Undefined("No aggregated item, sequence was empty.");
    return items.reduce((best, item) => (order(item, best) * sign > 0 ? item : best));
  };

const dictsort: Filter = (value, args) => {
  const [sensitive, by, reverse] = bind("dictsort", args, ["case_sensitive", "by", "reverse"]);
  if (!(value instanceof Dict)) return fail("dictsort wants a mapping");
  const at = by === "value" ? 1 : 0;
  const order = orderBy((pair) => (pair as Tuple).items[at]!, sensitive !== undefined && truthy(sensitive));
  const sign = reverse !== undefined && truthy(reverse) ? -1 : 1;
  const pairs: Value[] = [...value.entries].map((pair) => new Tuple(pair));
  return pairs.sort((a, b) => sign * order(a, b));
};

const sort: Filter = (value, args, context) => {
  const [reverse, sensitive, attribute] = bind("sort", args, ["reverse", "case_sensitive", "attribute"]);
  const names = typeof attribute === "string" ? attribute.split(",") : [attribute];
  const gets = names.map((name) => attributeGetter(name, context));
  const get = gets.length === 1 ? gets[0]! : (item: Value) => new Tuple(gets.map((one) => folded(one(item))));
  const order = orderBy(get, sensitive !== undefined && truthy(sensitive));
  const sign = reverse !== undefined && truthy(reverse) ? -1 : 1;
  const items = [...iterate(value)];
  context.budget.step(items.length);
  return items.sort((a, b) => sign * order(a, b));
};

const unique: Filter = (value, args, context) => {
  const [sensitive, attribute] = bind("unique", args, ["case_sensitive", "attribute"]);
  const get = attributeGetter(attribute, context);
  const key = (item: Value) => (sensitive !== undefined && truthy(sensitive) ? get(item) : folded(get(item)));
  const seen: Value[] = [];
  return iterate(value).filter((item) => {
    const own = key(item);
    context.budget.step(seen.length);
    if (seen.some((other) => equal(other, own))) return false;
    seen.push(own);
    return true;
  });
};

const groupby: Filter = (value, args, context) => {
  const [attribute, standard, sensitive] = bind("groupby", args, ["attribute", "default", "case_sensitive"], 1);
  const get = attributeGetter(attribute, context, standard);
  const key = (item: Value) => (sensitive !== undefined && truthy(sensitive) ? get(item) : folded(get(item)));
  const groups: [Value, Value[]][] = [];
  for (const item of [...iterate(value)].sort((a, b) => compare(key(a), key(b)))) {
    const last = groups.at(-1);
    if (last !== undefined && equal(key(last[1][0]!), key(item))) last[1].push(item);
    else groups.push([get(item), [item]]);
  }
  return groups.map(([name, items]) => new Tuple([name, items]));
};

const batch: Filter = (value, args) => {
  const [size, fill] = bind("batch", args, ["linecount", "fill_with"], 1);
  const count = asInteger("batch", size);
  if (count < 1 || count > 1e6) fail("batch wants a size of at least 1");
  const items = iterate(value);
  const rows: Value[][] = [];
  for (let at = 0; at < items.length; at += count) rows.push(items.slice(at, at + count) as Value[]);
  if (fill !== undefined && fill !== null)
    while (rows.length > 0 && rows.at(-1)!.length < count) rows.at(-1)!.push(fill);
  return rows;
};

const slice: Filter = (value, args) => {
  const [slices, fill] = bind("slice", args, ["slices", "fill_with"], 1);
  const items = iterate(value);
  const count = asInteger("slice", slices);
  if (count < 1 || count > 1e5) fail("slice wants a number of columns");
  const each = Math.floor(items.length / count);
  const longer = items.length % count;
  return Array.from({ length: count }, (_, index) => {
    const begin = index * each + Math.min(index, longer);
    const own = items.slice(begin, begin + each + (index < longer ? 1 : 0)) as Value[];
    return fill !== undefined && fill !== null && index >= longer ? [...own, fill] : own;
  });
};

export const LIST_FILTERS: Readonly<Record<string, Filter>> = {
  first: (value) => iterate(value)[0] ?? (iterate(value).length > 0 ? null : new Undefined("the first of no items")),
  last: (value) => iterate(value).at(-1) ?? (iterate(value).length > 0 ? null : new Undefined("the last of no items")),
  list: (value, _args, { budget }) => {
    budget.make(8 * iterate(value).length);
    return [...iterate(value)];
  },
  items: (value) => {
    if (value instanceof Undefined) return [];
    return value instanceof Dict ? [...value.entries].map((pair) => new Tuple(pair)) : fail("items wants a mapping");
  },
  join: (value, args, context) => {
    const [mark, attribute] = bind("join", args, ["d", "attribute"]);
    const separator = mark === undefined ? "" : str(mark);
    const texts = iterate(value).map(attributeGetter(attribute, context)).map(str);
    context.budget.make(texts.reduce((sum, text) => sum + text.length + separator.length, 0));
    return texts.join(separator);
  },
  reverse: (value) =>
    typeof value === "string" ? [...iterate(value)].reverse().join("") : [...iterate(value)].reverse(),
  map,
  select: chooser("select", true, false),
  reject: chooser("reject", false, false),
  selectattr: chooser("selectattr", true, true),
  rejectattr: chooser("rejectattr", false, true),
  min: extreme("min", -1),
  max: extreme("max", 1),
  sum: (value, args, context) => {
    const [attribute, start] = bind("sum", args, ["attribute", "start"]);
    const items = iterate(value).map(attributeGetter(attribute, context));
    return items.reduce((total, item) => arithmetic("+", total, item, context.budget), start ?? 0);
  },
  dictsort,
  sort,
  unique,
  groupby,
  batch,
  slice,
};
