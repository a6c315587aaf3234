import type { RowTemplate } from "../data/templates.ts";
import type { Tokenizer } from "../formats/tokenizer/tokenizer.ts";
import type { Scheduler } from "../generation/scheduler.ts";

/** A model as requests name it. */
export interface ServedModel {
  readonly id: string;
  /** The model that the adapter belongs to; null: a model itself. */
  readonly parent: string | null;
  /** Number of the adapter: see Round. */
  readonly adapter: number;
  readonly tokenizer: Tokenizer;
  /** null: it has none, and answers no chats. */
  readonly template: RowTemplate | null;
  /** Ids that end its replies. */
  readonly stopIds: ReadonlySet<number>;
  /** Number of updates that its current weights have had; null: they are not in training. */
  step(): number | null;
}

/** What the API answers with. */
export interface Service {
  /** null: the model is being loaded for the first time. */
  scheduler(): Scheduler | null;
  /** The base and its adapters; or the adapters in training that can be asked now. */
  models(): readonly ServedModel[];
  /** When it began, in seconds since 1970. */
  readonly created: number;
  /** Default number of tokens of a chat's reply. */
  readonly defaultTokens: number;
  /** After so long a request is given up. */
  readonly timeoutMs: number;
}
