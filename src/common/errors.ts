/**
 * The coded catalogue of everything that can go wrong. A code is stable: tools may match on it, and
 * docs/reference/errors.md lists every one (a test holds the two together).
 *
 * A message says what was expected, what came, and what to do about it.
 */
export const ERROR_CATALOGUE = {
  PL_CONFIG_INVALID: "A flag or a key of the configuration file is unknown, malformed or contradicts another.",
  PL_MODEL_NOT_FOUND: "The model folder, its config.json or one of its files does not exist.",
  PL_MODEL_UNSUPPORTED: "The architecture named in config.json, or one of its settings, is not one this trainer runs.",
  PL_MODEL_CONFIG_INVALID: "config.json is malformed or its numbers contradict each other.",
  PL_CHECKPOINT_INVALID: "A safetensors file or its index is truncated, malformed or points outside its folder.",
  PL_HUB_NOT_FOUND: "A hub has no repository, revision, split or file of the name given.",
  PL_HUB_DENIED: "A hub refuses access: the repository is private or gated, or the token is missing or not valid.",
  PL_HUB_UNREACHABLE: "A hub gave no answer, or one that is no hub's, in several attempts.",
  PL_HUB_DAMAGED: "What came from a hub is not what it lists.",
  PL_HUB_OFFLINE: "Something is not in the cache, and the environment says to make no request.",
  PL_TENSOR_MISMATCH: "A tensor is missing, or has another shape or dtype than the model's configuration implies.",
  PL_QUANTIZATION_INVALID: "A weight can't be quantised, or a quantised checkpoint's state is missing or inconsistent.",
  PL_TOKENIZER_INVALID: "The tokenizer's files are missing, malformed or of an unknown kind.",
  PL_TEMPLATE_INVALID: "The chat template is missing, or failed on these messages.",
  PL_DATASET_INVALID: "The dataset can't be read, has rows without the expected keys, or leaves nothing to train on.",
  PL_ADAPTER_INVALID: "An adapter folder is incomplete, malformed or made for another model.",
  PL_TARGET_MODULES_UNMATCHED: "The LoRA settings match no linear layer of this model.",
  PL_DEVICE_MAP_INVALID: "The device map leaves a module out, splits a block, or names an unknown device.",
  PL_PLACEMENT_INFEASIBLE: "The model does not fit the devices and budgets given.",
  PL_DEVICE_UNAVAILABLE: "A device named on the command line does not exist or can't be used.",
  PL_ENGINE_UNAVAILABLE: "The native engine is not built, or was built for another version or machine.",
  PL_ENGINE_FAILED: "The native engine reported a failure while computing.",
  PL_OUT_OF_MEMORY: "A device's memory arena is too small for what the run asked of it.",
  PL_LOSS_NOT_FINITE: "The loss or a gradient became NaN or infinite.",
  PL_ADAPTERS_FAILED: "Of several adapters that were trained together, some failed alone; the others are done.",
  PL_TRACKING_FAILED: "The tracking server that --report-to names gave no answer, or refused.",
  PL_OUTPUT_UNWRITABLE: "The output folder or a file in it can't be written.",
  PL_RESUME_INVALID: "No complete checkpoint was found to resume from, or it belongs to another run.",
  PL_PORT_UNAVAILABLE: "The address to listen on is taken or can't be bound.",
  PL_PROTOCOL_MISMATCH: "Two processes of different protocol or build versions met.",
  PL_TLS_INVALID: "A certificate, key or CA file is missing, malformed, expired or does not belong to the others.",
  PL_PEER_UNTRUSTED: "Two processes could not prove to each other that they belong to one cluster.",
  PL_JOIN_REFUSED: "The coordinator refused a worker: its join token, or a node name that another node holds.",
  PL_PREFLIGHT_FAILED: "A node, its clock, checkpoint, disk or a link is not fit for the run; nothing was loaded.",
  PL_WORKER_LOST: "A worker died, hung or lost its connection.",
  PL_WORKER_MISSING: "Not every expected worker joined in time.",
  PL_LINK_FAILED: "Two workers could not exchange a tensor.",
  PL_REQUEST_INVALID: "A request for a reply asks for what this model or this server can't do.",
  PL_REQUEST_LATE: "A request was not answered within its deadline.",
  PL_SERVER_BUSY: "As many requests are being answered and wait as may; try again later.",
  PL_INTERRUPTED: "The run was stopped by a signal.",
  PL_INTERNAL: "A defect in this program.",
} as const;

export type ErrorCode = keyof typeof ERROR_CATALOGUE;

export interface ErrorDetails {
  /** What the user can do about it: one sentence, imperative. */
  readonly hint?: string;
  readonly cause?: unknown;
}

/** An error of the catalogue. The command line prints code, message and hint, and exits as exit-codes.ts says. */
export class PipeloraError extends Error {
  readonly code: ErrorCode;
  readonly hint: string | undefined;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = "PipeloraError";
    this.code = code;
    this.hint = details.hint;
  }
}

/** Wraps whatever was thrown, keeping errors of the catalogue as they are. */
export function toPipeloraError(thrown: unknown, code: ErrorCode = "PL_INTERNAL"): PipeloraError {
  if (thrown instanceof PipeloraError) return thrown;
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  return new PipeloraError(code, message, { cause: thrown });
}

export function isErrorCode(code: string): code is ErrorCode {
  return Object.hasOwn(ERROR_CATALOGUE, code);
}

/** docs/reference/errors.md */
export function errorsTable(): string {
  const rows = Object.entries(ERROR_CATALOGUE).map(([code, meaning]) => `| \`${code}\` | ${meaning} |`);
  return `# Errors\n\nGenerated from the catalogue by \`npm run docs\`. A command that fails prints the code, what was expected and what came, and what to do, and exits with a [code](exit-codes.md) that tells whether to retry.\n\n| code | meaning |\n|---|---|\n${rows.join("\n")}\n`;
}
