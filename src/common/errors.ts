/**
 * The catalogue of coded errors: what each code means, and what the user can do. Codes are stable, since tools may match on them.
 * docs/reference/errors.md lists each of them (a test compares the two). A message says what was expected, what came, and what to do.
 */
export const ERROR_CATALOGUE = {
  PL_CONFIG_INVALID: {
    means: "A flag or a key of the configuration file is unknown, malformed or contradicts another.",
    todo: "Correct the flag or key that the message names; `coordinator COMMAND --help` lists them all.",
  },
  PL_MODEL_NOT_FOUND: {
    means: "The model folder, its config.json or one of its files does not exist.",
    todo: "Check --model: a folder with config.json and weights in safetensors, or owner/name on a hub.",
  },
  PL_MODEL_UNSUPPORTED: {
    means: "The architecture named in config.json, or one of its settings, is not one this trainer runs.",
    todo: "Take a model of [this list](models.md), or [add its family](../guide/new-model.md).",
  },
  PL_MODEL_CONFIG_INVALID: {
    means: "config.json is malformed or its numbers contradict each other.",
    todo: "Compare config.json with the one the model was published with.",
  },
  PL_CHECKPOINT_INVALID: {
    means: "A safetensors file or its index is truncated, malformed or points outside its folder.",
    todo: "Copy or download the file that the message names again.",
  },
  PL_HUB_NOT_FOUND: {
    means: "A hub has no repository, revision, split or file of the name given.",
    todo: "Check owner/name, and the revision, split or file behind it.",
  },
  PL_HUB_DENIED: {
    means: "A hub refuses access: the repository is private or gated, or the token is missing or not valid.",
    todo: "Accept the model's terms on its page, and set HF_TOKEN or MODELSCOPE_API_TOKEN.",
  },
  PL_HUB_UNREACHABLE: {
    means: "A hub gave no answer, or one that is no hub's, in several attempts.",
    todo: "Check the network, HF_ENDPOINT and https_proxy, and start again: what has come is kept.",
  },
  PL_HUB_DAMAGED: {
    means: "What came from a hub is not what it lists.",
    todo: "Start again; if it comes back, the hub or a proxy alters files: fetch the folder another way.",
  },
  PL_HUB_OFFLINE: {
    means: "Something is not in the cache, and the environment says to make no request.",
    todo: "Download it once with HF_HUB_OFFLINE unset, or name a folder.",
  },
  PL_TENSOR_MISMATCH: {
    means: "A tensor is missing, or has another shape or dtype than the model's configuration implies.",
    todo: "Use the config.json that belongs to these weights.",
  },
  PL_QUANTIZATION_INVALID: {
    means: "A weight can't be quantised, or a quantised checkpoint's state is missing or inconsistent.",
    todo: "Quantise the 16-bit checkpoint anew (`coordinator quantize`), or load that with --load-in-4bit.",
  },
  PL_TOKENIZER_INVALID: {
    means: "The tokenizer's files are missing, malformed or of an unknown kind.",
    todo: "Put the model's own tokenizer files beside its weights.",
  },
  PL_TEMPLATE_INVALID: {
    means: "The chat template is missing, or failed on these messages.",
    todo: "Name another --template, or correct the rows that the message names.",
  },
  PL_DATASET_INVALID: {
    means: "The dataset can't be read, has rows without the expected keys, or leaves nothing to train on.",
    todo: "Correct the row or key that the message names; `coordinator tokenize` shows what training will see.",
  },
  PL_ADAPTER_INVALID: {
    means: "An adapter folder is incomplete, malformed or made for another model.",
    todo: "Name the adapter's folder (adapter_config.json and adapter_model.safetensors) and the model it was trained on.",
  },
  PL_TARGET_MODULES_UNMATCHED: {
    means: "The LoRA settings match no linear layer of this model.",
    todo: "Take --target-modules from `coordinator parameters`.",
  },
  PL_DEVICE_MAP_INVALID: {
    means: "The device map leaves a module out, splits a block, or names an unknown device.",
    todo: "Correct the map, or take a name: auto, balanced, balanced_low_0, sequential.",
  },
  PL_PLACEMENT_INFEASIBLE: {
    means: "The model does not fit the devices and budgets given.",
    todo: "Give more memory or devices, quantise, checkpoint more, or shorten --max-length; `coordinator plan` compares them.",
  },
  PL_DEVICE_UNAVAILABLE: {
    means: "A device named on the command line does not exist or can't be used.",
    todo: "Take a device that `coordinator doctor` lists.",
  },
  PL_ENGINE_UNAVAILABLE: {
    means: "The native engine is not built, or was built for another version or machine.",
    todo: "Run `coordinator doctor`; build with `npm run build`, or install the package anew.",
  },
  PL_ENGINE_FAILED: {
    means: "The native engine reported a failure while computing.",
    todo: "Start again with --resume-from-checkpoint; if it comes back, report it with the log.",
  },
  PL_OUT_OF_MEMORY: {
    means: "A device's memory arena is too small for what the run asked of it.",
    todo: "Lower --max-memory, so that less is placed there, or end what else uses the device.",
  },
  PL_LOSS_NOT_FINITE: {
    means: "The loss or a gradient became NaN or infinite.",
    todo: "Lower --learning-rate, or compute in bfloat16 or float32 in place of float16.",
  },
  PL_ADAPTERS_FAILED: {
    means: "Of several adapters that were trained together, some failed alone; the others are done.",
    todo: "Correct what each one's error says; each goes on from its last checkpoint with --resume-from-checkpoint.",
  },
  PL_TRACKING_FAILED: {
    means: "The tracking server that --report-to names gave no answer, or refused.",
    todo: "Check MLFLOW_TRACKING_URI and the server, or leave --report-to out: metrics are in the output folder anyway.",
  },
  PL_OUTPUT_UNWRITABLE: {
    means: "The output folder or a file in it can't be written.",
    todo: "Free space, give this user the folder, or name another --output-dir.",
  },
  PL_RESUME_INVALID: {
    means: "No complete checkpoint was found to resume from, or it belongs to another run.",
    todo: "Name a checkpoint of this run, or take --resume-from-checkpoint auto to begin where there is none.",
  },
  PL_PORT_UNAVAILABLE: {
    means: "The address to listen on is taken or can't be bound.",
    todo: "Take another port, or end the process that holds it.",
  },
  PL_PROTOCOL_MISMATCH: {
    means: "Two processes of different protocol or build versions met.",
    todo: "Install one version of pipelora on all machines.",
  },
  PL_TLS_INVALID: {
    means: "A certificate, key or CA file is missing, malformed, expired or does not belong to the others.",
    todo: "Issue certificates anew (`coordinator certs`), and check the machine's clock.",
  },
  PL_PEER_UNTRUSTED: {
    means: "Two processes could not prove to each other that they belong to one cluster.",
    todo: "Give all processes certificates of one authority, and the same --tls-name.",
  },
  PL_JOIN_REFUSED: {
    means: "The coordinator refused a worker: its join token, or a node name that another node holds.",
    todo: "Give the worker the coordinator's join token, and a --node-name of its own.",
  },
  PL_PREFLIGHT_FAILED: {
    means: "A node, its clock, checkpoint, disk or a link is not fit for the run; nothing was loaded.",
    todo: "Mend what the table names; `--preflight-only` looks again without a run.",
  },
  PL_WORKER_LOST: {
    means: "A worker died, hung or lost its connection.",
    todo: "Look at that worker's log and its machine; the run goes on from its last checkpoint with --resume-from-checkpoint.",
  },
  PL_WORKER_MISSING: {
    means: "Not every expected worker joined in time.",
    todo: "Start the workers that the message names, or raise --join-timeout.",
  },
  PL_LINK_FAILED: {
    means: "Two workers could not exchange a tensor.",
    todo: "Check the network between the two ranks; raise --link-timeout where a step takes longer.",
  },
  PL_REQUEST_INVALID: {
    means: "A request for a reply asks for what this model or this server can't do.",
    todo: "Correct the request as the message says; [the API](api.md) lists what is understood.",
  },
  PL_REQUEST_LATE: {
    means: "A request was not answered within its deadline.",
    todo: "Ask for fewer tokens, or raise --request-timeout.",
  },
  PL_SERVER_BUSY: {
    means: "As many requests are being answered and wait as may; try again later.",
    todo: "Wait as long as Retry-After says, or start the server with more --max-concurrent-requests.",
  },
  PL_INTERRUPTED: {
    means: "The run was stopped by a signal.",
    todo: "Nothing, or go on with --resume-from-checkpoint.",
  },
  PL_INTERNAL: {
    means: "A defect in this program.",
    todo: "Report it with the cause that stands below the message.",
  },
} as const satisfies Record<string, { means: string; todo: string }>;

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
  const rows = Object.entries(ERROR_CATALOGUE).map(([code, { means, todo }]) => `| \`${code}\` | ${means} | ${todo} |`);
  return `# Errors\n\nGenerated from the catalogue by \`npm run docs\`. A command that fails prints the code, what was expected and what came, and what to do, and exits with a [code](exit-codes.md) that tells whether to retry.\n\n| code | meaning | what to do |\n|---|---|---|\n${rows.join("\n")}\n`;
}
