import type { Tokenizer } from "../formats/tokenizer/tokenizer.ts";
import type { TokenChoice } from "./draws.ts";
import type { DrawnToken } from "./round.ts";
import type { Scheduler } from "./scheduler.ts";
import { TextStream } from "./text-stream.ts";

export interface ReplyRequest {
  readonly prompt: readonly number[];
  readonly maxNewTokens: number;
  /** Ids that end the reply. */
  readonly stopIds: ReadonlySet<number>;
  /** Stop strings, which are not part of the reply; they need a tokenizer. */
  readonly stops: readonly string[];
  /** Whether special tokens show in the text; left out: no. */
  readonly specials?: boolean;
  readonly choice: TokenChoice;
  /** Number of the adapter: see Round; left out: 0. */
  readonly adapter?: number;
  /** Gives the reply up: see Scheduler.run. */
  readonly signal?: AbortSignal;
  /** Called with each token: whether the reply ends with what it has. */
  readonly cancelled?: () => boolean;
}

export interface ReplyPiece {
  /** Whole characters. */
  readonly text: string;
  /** Since the piece before. */
  readonly tokens: readonly DrawnToken[];
}

export interface Reply {
  /** New ids, an end token included. */
  readonly ids: readonly number[];
  /** null without a tokenizer. */
  readonly text: string | null;
  /** stop: an end token or a stop string; length: as many tokens as were asked for. */
  readonly reason: "stop" | "length";
}

/** Continues a prompt as text. `onPiece` gets text as soon as later tokens can't change it. Errors: the scheduler's. */
export async function reply(
  scheduler: Scheduler,
  tokenizer: Tokenizer | null,
  request: ReplyRequest,
  onPiece: (piece: ReplyPiece) => void,
): Promise<Reply> {
  const stream = tokenizer === null ? null : new TextStream(tokenizer, request.stops, request.specials === true);
  const ids: number[] = [];
  let text = "";
  let tokens: DrawnToken[] = [];
  const show = (piece: string) => {
    if (piece === "" && tokens.length === 0) return;
    text += piece;
    onPiece({ text: piece, tokens });
    tokens = [];
  };
  const ended = await scheduler.run({
    prompt: request.prompt,
    maxNewTokens: request.maxNewTokens,
    stopIds: request.stopIds,
    choice: request.choice,
    adapter: request.adapter ?? 0,
    ...(request.signal === undefined ? {} : { signal: request.signal }),
    onToken: (token) => {
      ids.push(token.id);
      tokens.push(token);
      const cancelled = request.cancelled?.() === true;
      if (stream === null || request.stopIds.has(token.id)) return cancelled;
      const piece = stream.push(token.id);
      if (piece.text !== "") show(piece.text);
      return piece.stopped || cancelled;
    },
  });
  show(stream?.end() ?? "");
  return { ids, text: stream === null ? null : text, reason: ended === "length" ? "length" : "stop" };
}
