import { bytesOf } from "../../common/bytes.ts";
import type { DrawnToken, Round, RoundEntry } from "../../generation/round.ts";
import type { Draw } from "../../rpc/generated/pipelora/v1/Draw.ts";
import type { DrawnToken__Output } from "../../rpc/generated/pipelora/v1/DrawnToken.ts";
import type { Infer } from "../../rpc/generated/pipelora/v1/Infer.ts";
import { fromFailure } from "../../rpc/wire-error.ts";

/** A round as the workers are told of it. */
export function roundMessage(number: number, { adapter, entries }: Round): Infer {
  const each = (value: (entry: RoundEntry) => number) => bytesOf(Int32Array.from(entries, value));
  const draws = entries.flatMap(({ draw }, sequence): Draw[] => {
    if (draw === null) return [];
    const { settings, seen, biased, biases, likeliest } = draw;
    return [
      {
        ...settings,
        sequence,
        seen: bytesOf(seen),
        biased: bytesOf(biased),
        biases: bytesOf(biases),
        draw: draw.draw,
        logProbabilities: likeliest >= 0,
        likeliest: Math.max(0, likeliest),
      },
    ];
  });
  return {
    round: number,
    adapter,
    counts: each(({ tokens }) => tokens.length),
    slots: each(({ slot }) => slot),
    starts: each(({ start }) => start),
    past: each(({ past }) => past),
    lengths: each(({ length }) => length),
    tokens: bytesOf(Int32Array.from(entries.flatMap(({ tokens }) => tokens))),
    draws,
  };
}

export function drawnToken({ token, logProbability, likeliest, failure }: DrawnToken__Output): DrawnToken {
  return {
    id: token,
    logProbability,
    likeliest: likeliest.map((likely) => ({ id: likely.token, logProbability: likely.logProbability })),
    failure: failure === null ? null : fromFailure(failure, "the worker that holds the head"),
  };
}
