import { PipeloraError } from "../common/errors.ts";
import { withTimeLimit } from "../common/time-limit.ts";

/** Longest time one pattern may take over all names: adapters come from strangers, and so do their patterns. */
const MATCH_TIMEOUT_MS = 2000;
const MAX_PATTERN_LENGTH = 65536;

/**
 * Rewrites the parts of Python's `re` syntax that JavaScript spells differently: named groups, \A and \Z, a leading
 * (?i), escapes of letters that stand for themselves. What JavaScript has no word for is refused by `compile`.
 */
function toJavaScript(pattern: string): { source: string; flags: string } {
  let flags = "";
  const withoutFlags = pattern.replace(/^\(\?([is]+)\)/, (_, letters: string) => {
    flags = [...new Set(letters)].join("");
    return "";
  });
  const source = withoutFlags
    .replace(/\(\?P<([A-Za-z_]\w*)>/g, "(?<$1>")
    .replace(/\(\?P=([A-Za-z_]\w*)\)/g, "\\k<$1>")
    .replace(/\\(.)/gsu, (written, letter: string) => {
      if (letter === "A") return "^";
      if (letter === "Z") return "$";
      // Python lets any punctuation be escaped, JavaScript's u flag only its syntax characters.
      return /[\w^$\\.*+?()[\]{}|/]/.test(letter) && letter !== "_"
        ? written
        : `\\u{${letter.codePointAt(0)!.toString(16)}}`;
    });
  return { source, flags };
}

/** JavaScript source around a pattern. */
export interface Frame {
  readonly prefix: string;
  readonly suffix: string;
}

/** The whole name must match, as with re.fullmatch. */
const FULL: Frame = { prefix: "^(?:", suffix: ")$" };

/**
 * For each name the match of the pattern inside `frame`, or null. Throws PL_CONFIG_INVALID, naming `setting`, where the pattern is no regular expression or takes too long.
 */
export function matchNames(
  setting: string,
  pattern: string,
  names: readonly string[],
  frame: Frame = FULL,
): (RegExpExecArray | null)[] {
  const expression = compile(setting, pattern, frame);
  try {
    return withTimeLimit(MATCH_TIMEOUT_MS, () => names.map((name) => expression.exec(name)));
  } catch (error) {
    throw new PipeloraError(
      "PL_CONFIG_INVALID",
      `${setting}: matching "${pattern}" took over ${MATCH_TIMEOUT_MS} ms.`,
      {
        hint: "Simplify the pattern: nested repetition such as (a+)+ takes exponential time.",
        cause: error,
      },
    );
  }
}

function compile(setting: string, pattern: string, frame: Frame): RegExp {
  if (pattern.length > MAX_PATTERN_LENGTH) {
    throw new PipeloraError("PL_CONFIG_INVALID", `${setting}: a pattern of ${pattern.length} characters is too long.`);
  }
  const { source, flags } = toJavaScript(pattern);
  try {
    // The pattern alone first: a lone ")" must not close the frame's group.
    new RegExp(source, `u${flags}`);
    return new RegExp(`${frame.prefix}${source}${frame.suffix}`, `u${flags}`);
  } catch (error) {
    throw new PipeloraError(
      "PL_CONFIG_INVALID",
      `${setting}: "${pattern}" is not a regular expression that can be run here: ${(error as Error).message}.`,
      { hint: "Write it without Python-only syntax, or list the module names.", cause: error },
    );
  }
}
