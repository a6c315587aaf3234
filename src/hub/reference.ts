/** What kind of repository a name is looked for among. An adapter is a model's. */
export type RepoKind = "model" | "dataset";

/** A repository of a hub at a revision. */
export interface RepoReference {
  readonly kind: RepoKind;
  /** "owner/name"; "name" for the first models and sets, which have no owner (gpt2, squad). */
  readonly name: string;
  /** Branch, tag or commit; null: the hub's main branch. */
  readonly revision: string | null;
}

/** A split of a data set: "owner/name:train", "owner/name:config/train", with "@revision" before or behind it. */
export interface DatasetReference extends RepoReference {
  readonly kind: "dataset";
  /** Of the configurations that its card names; null: its default. */
  readonly config: string | null;
  /** null: "train". */
  readonly split: string | null;
}

/** As the hubs allow: letters, digits, "-", "_", "."; neither end of a part is "-" or ".". Without an owner no dot: that is a file. */
const NAME = /^(?:\w(?:[\w.-]*\w)?\/\w(?:[\w.-]*\w)?|\w(?:[\w-]*\w)?)$/;
const MAX_NAME = 96;
const REVISION = /^[\w](?:[\w./+-]*[\w])?$/;
const SPLIT = /^(?:(\w[\w.+-]*)\/)?(\w[\w.-]*)$/;

/** "owner/name@revision", or without an owner; null where the text has no such form, so that it can only be a path. */
export function parseReference(text: string): RepoReference | null {
  const at = text.indexOf("@");
  const name = at === -1 ? text : text.slice(0, at);
  const revision = at === -1 ? null : text.slice(at + 1);
  return isName(name) && (revision === null || isRevision(revision)) ? { kind: "model", name, revision } : null;
}

/** null where the text has no such form. */
export function parseDatasetReference(text: string): DatasetReference | null {
  const found = /^([^:@]+)(?:([:@])([^:@]+))?(?:([:@])([^:@]+))?$/.exec(text);
  if (found === null) return null;
  const [, name, first, one, second, two] = found;
  if (!isName(name!) || (first !== undefined && first === second)) return null;
  const part = (mark: string) => (first === mark ? one! : second === mark ? two! : null);
  const revision = part("@");
  if (revision !== null && !isRevision(revision)) return null;
  const written = part(":");
  const split = written === null ? null : SPLIT.exec(written);
  if (written !== null && split === null) return null;
  return { kind: "dataset", name: name!, revision, config: split?.[1] ?? null, split: split?.[2] ?? null };
}

function isName(text: string): boolean {
  return text.length <= MAX_NAME && NAME.test(text) && !/--|\.\./.test(text);
}

/** It becomes a path under refs/. */
function isRevision(text: string): boolean {
  return REVISION.test(text) && !text.includes("..") && !text.includes("//");
}
