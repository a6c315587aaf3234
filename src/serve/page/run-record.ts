import { StepColumns } from "./columns.ts";
import { countOf, type Fields, fieldsOf, isFields, numberOf, textOf } from "./fields.ts";
import { RunLog } from "./run-log.ts";
import type { Evaluation, Reply, Revisions, RunError, Setting } from "./wire.ts";

/** Evaluations and replies that are kept. */
const MOST_EVALUATIONS = 5_000;
const MOST_REPLIES = 500;
/** It is told with every change. */
const MOST_ERROR_CHARACTERS = 2_000;
const LEVELS = ["debug", "info", "warn", "error"] as const;

/** How a run ended; null error: it was done. */
export interface Ending {
  readonly at: number | null;
  readonly error: RunError | null;
}

export interface Save {
  readonly step: number;
  /** The folder's own name. */
  readonly name: string;
  readonly at: number | null;
}

/**
 * What is known of one run, from the events in its files or from the run itself; both have the same form. Malformed events are skipped;
 * nothing grows without bound.
 */
export class RunRecord {
  readonly columns: StepColumns;
  readonly log = new RunLog();
  evaluations: Evaluation[] = [];
  replies: Reply[] = [];
  /** Replies that there have been. */
  replyCount = 0;
  settings: readonly Setting[] = [];
  saves: Save[] = [];
  /** The last plan, preflight, and recorded step, as the run reported them. */
  plan: Fields | null = null;
  preflight: Fields | null = null;
  lastStep: Fields | null = null;
  /** Measured totals of the whole run, beside predictions; null: it has not ended. */
  #predictions: Fields | null = null;
  maxSteps: number | null = null;
  epoch: number | null = null;
  startedAt: number | null = null;
  heardAt: number | null = null;
  ending: Ending | null = null;
  readonly #counts: Record<Exclude<keyof Revisions, "log">, number>;
  readonly #first: number;
  /** Whether steps were reported, not only log entries. */
  #hasSteps = false;

  /** `first`: its first revision. A record that replaces another begins with a higher one. */
  constructor(first = 0) {
    this.#first = first;
    this.columns = new StepColumns(first);
    this.#counts = { view: first, evaluations: first, timeline: first, replies: first };
  }

  get revisions(): Revisions {
    return { ...this.#counts, log: this.#first + this.log.count };
  }

  /** Measured beside predicted: of the whole run, else up to the last recorded step. */
  get measured(): Fields {
    return this.#predictions ?? fieldsOf(this.lastStep?.["measured"]);
  }

  /** Takes a line of metrics.jsonl, run.jsonl, samples.jsonl or last-step.json, or the same event from a run of this process. */
  apply(event: unknown): void {
    if (!isFields(event)) return;
    const at = timeOf(event["time"]);
    if (at !== null) {
      this.startedAt = this.startedAt === null ? at : Math.min(this.startedAt, at);
      this.heardAt = Math.max(this.heardAt ?? at, at);
    }
    const name = textOf(event["event"]);
    if (name !== null && Object.hasOwn(this.#appliers, name)) this.#appliers[name]!(event, at);
  }

  /** A row of samples.jsonl. */
  addReply(row: unknown): void {
    if (!isFields(row)) return;
    const step = countOf(row["step"]);
    const text = textOf(row["text"]);
    if (step === null || text === null) return;
    this.replies.push({ step, prompt: promptOf(row), text });
    if (this.replies.length >= 2 * MOST_REPLIES) this.replies = this.replies.slice(-MOST_REPLIES);
    this.replyCount++;
    this.#counts.replies++;
  }

  /** Takes the log_history of a trainer_state.json if no steps were reported. */
  addHistory(state: unknown): void {
    const { log_history: history, max_steps: most } = fieldsOf(state);
    this.maxSteps ??= countOf(most);
    if (!Array.isArray(history)) return;
    for (const entry of history) if (isFields(entry)) this.#logged(entry);
  }

  /** Settings from a file that is read once. */
  assume(settings: readonly Setting[]): void {
    this.settings = settings;
    this.#counts.view++;
  }

  readonly #appliers: Readonly<Record<string, (event: Fields, at: number | null) => void>> = {
    began: (event) => {
      this.settings = settingsOf(event);
      this.ending = null;
      this.#predictions = null;
      this.#counts.view++;
    },
    step: (event) => this.#stepped(event),
    log: (event) => this.#logged(event),
    save: (event, at) => this.#saved(event, at),
    plan: (event) => {
      this.plan = fieldsOf(event["plan"]);
      this.#counts.view++;
    },
    preflight: (event) => {
      this.preflight = fieldsOf(event["preflight"]);
      this.#counts.view++;
    },
    line: (event, at) => {
      const level = LEVELS.find((one) => one === event["level"]) ?? "info";
      const text = textOf(event["text"]);
      if (text !== null) this.log.add({ at: at ?? 0, level, text });
    },
    last_step: (event) => {
      this.lastStep = event;
      this.#counts.timeline++;
      this.#counts.view++;
    },
    predictions: (event) => {
      this.#predictions = fieldsOf(event["predictions"]);
      this.#counts.view++;
    },
    // An error of one of several adapters.
    failed: (event, at) => this.#ended({ at, error: errorOf(event) }),
    end: (_event, at) => this.#ended({ at, error: null }),
    ended: (event, at) => {
      const error = isFields(event["error"]) ? errorOf(event["error"]) : null;
      // The last metrics show that the run has ended; a run that was only checked (preflight) has none.
      if (error !== null || this.ending === null) this.#ended({ at, error });
    },
  };

  #stepped(event: Fields): void {
    const step = countOf(event["step"]);
    if (step === null || step === 0) return;
    if (!this.#hasSteps || step <= this.columns.lastStep) this.#backTo(step);
    this.#hasSteps = true;
    this.maxSteps = countOf(event["max_steps"]) ?? this.maxSteps;
    this.epoch = numberOf(event["epoch"]) ?? this.epoch;
    this.ending = null;
    this.columns.add({
      step,
      loss: numberOf(event["loss"]),
      learningRate: numberOf(event["learning_rate"]),
      gradientNorm: numberOf(event["grad_norm"]),
      tokens: numberOf(event["tokens"]),
      ms: numberOf(event["step_ms"]),
    });
  }

  /** Evaluations; and of a run whose steps are not known, its points. */
  #logged(entry: Fields): void {
    const step = countOf(entry["step"]);
    if (step === null) return;
    const loss = numberOf(entry["eval_loss"]);
    if (loss !== null) {
      this.evaluations = this.evaluations.filter((one) => one.step !== step).slice(1 - MOST_EVALUATIONS);
      this.evaluations.push({ step, loss, seconds: numberOf(entry["eval_runtime"]) });
      this.#counts.evaluations++;
      return;
    }
    if (this.#hasSteps || step === 0 || numberOf(entry["loss"]) === null) return;
    this.epoch = numberOf(entry["epoch"]) ?? this.epoch;
    this.columns.add({
      ...{ step, loss: numberOf(entry["loss"]), tokens: null, ms: null },
      learningRate: numberOf(entry["learning_rate"]),
      gradientNorm: numberOf(entry["grad_norm"]),
    });
  }

  #saved(event: Fields, at: number | null): void {
    const step = countOf(event["step"]);
    const name = textOf(event["path"])?.split(/[/\\]/).at(-1);
    if (step === null || name === undefined) return;
    this.saves = [...this.saves.filter((save) => save.name !== name), { step, name, at }];
    this.#counts.view++;
  }

  #ended(ending: Ending): void {
    this.ending = ending;
    this.#counts.view++;
  }

  /** The run does this step again. */
  #backTo(step: number): void {
    if (this.evaluations.some((one) => one.step >= step)) {
      this.evaluations = this.evaluations.filter((one) => one.step < step);
      this.#counts.evaluations++;
    }
    if (this.replies.some((one) => one.step >= step)) {
      this.replies = this.replies.filter((one) => one.step < step);
      this.#counts.replies++;
    }
    this.saves = this.saves.filter((save) => save.step < step);
  }
}

/** Files have seconds. */
function timeOf(value: unknown): number | null {
  const seconds = numberOf(value);
  return seconds === null ? null : seconds * 1000;
}

function errorOf(error: Fields): RunError {
  const short = (value: unknown) => textOf(value)?.slice(0, MOST_ERROR_CHARACTERS) ?? null;
  return { code: short(error["code"]) ?? "", message: short(error["message"]) ?? "", hint: short(error["hint"]) };
}

function settingsOf(event: Fields): Setting[] {
  const changed = Array.isArray(event["changed"]) ? new Set(event["changed"]) : null;
  return settingRows(fieldsOf(event["settings"]), changed);
}

export function settingRows(settings: Fields, changed: ReadonlySet<unknown> | null): Setting[] {
  return Object.entries(settings).map(([name, value]) => ({
    name,
    value: typeof value === "string" ? value : JSON.stringify(value),
    changed: changed === null ? null : changed.has(name),
  }));
}

/** Of rows with messages the last question. */
function promptOf(row: Fields): string {
  const prompt = textOf(row["prompt"]);
  if (prompt !== null) return prompt;
  const messages = Array.isArray(row["messages"]) ? row["messages"].filter(isFields) : [];
  const asked = textOf(messages.findLast(({ role }) => role === "user")?.["content"]);
  return asked ?? `#${countOf(row["index"]) ?? 0}`;
}
