import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { PipeloraError } from "../../../src/common/errors.ts";
import { GREEDY } from "../../../src/generation/draws.ts";
import type { DrawnToken, Round, RoundRunner } from "../../../src/generation/round.ts";
import { Busy, Scheduler, type SchedulerLimits } from "../../../src/generation/scheduler.ts";
import type { EndReason } from "../../../src/generation/sequence.ts";

const VOCABULARY = 11;

/** What the model of these tests says after some tokens. */
const nextOf = (tokens: readonly number[], adapter: number) =>
  tokens.reduce((sum, token, place) => (sum * 31 + token * (place + 1) + 7 + adapter) % 10_007, 1) % VOCABULARY;

const LIMITS: SchedulerLimits = { sequences: 4, rows: 60, positions: 50, roundTokens: 8, rounds: 1, waiting: 1000 };

/** A model that reads what it was given before from its cache alone: rows and slots that belong to two show. */
class CachedModel implements RoundRunner {
  readonly rows: (number | null)[];
  /** Tokens of the sequence that a slot's state is of. */
  readonly states = new Map<number, number>();
  readonly limits: SchedulerLimits;
  underWay = 0;
  mostUnderWay = 0;
  rounds: Round["entries"][] = [];
  broken: PipeloraError | null = null;
  readonly #delays: readonly number[];
  #order: Promise<unknown> = Promise.resolve();

  constructor(limits: SchedulerLimits, delays: readonly number[] = [0]) {
    this.limits = limits;
    this.rows = new Array(limits.rows).fill(null);
    this.#delays = delays;
  }

  async infer(round: Round): Promise<DrawnToken[]> {
    this.rounds.push(round.entries);
    this.underWay++;
    this.mostUnderWay = Math.max(this.mostUnderWay, this.underWay);
    const before = this.#order;
    const mine = (async () => {
      await before;
      for (let i = 0; i < this.#delays[this.rounds.length % this.#delays.length]!; i++) await Promise.resolve();
    })();
    this.#order = mine;
    await mine;
    this.underWay--;
    if (this.broken !== null) throw this.broken;
    assert.equal(new Set(round.entries.map(({ slot }) => slot)).size, round.entries.length);
    const drawn: DrawnToken[] = [];
    for (const { tokens, slot, start, past, length, draw } of round.entries) {
      assert.ok(tokens.length > 0 && length > 0);
      assert.equal(past === 0 ? 0 : this.states.get(slot), past);
      for (const [i, token] of tokens.entries()) this.rows[start + past + i] = token;
      assert.ok(start + past + tokens.length <= this.limits.rows);
      this.states.set(slot, past + tokens.length);
      const all = this.rows.slice(start, start + past + tokens.length) as number[];
      if (draw !== null)
        drawn.push({ id: nextOf(all, round.adapter), logProbability: 0, likeliest: [], failure: null });
    }
    return drawn;
  }
}

interface Asked {
  readonly prompt: readonly number[];
  readonly maxNewTokens: number;
  readonly stop: number | null;
  readonly adapter?: number;
}

/** What it would say alone. */
function alone({ prompt, maxNewTokens, stop, adapter = 0 }: Asked): { tokens: number[]; reason: EndReason } {
  const tokens: number[] = [];
  while (tokens.length < maxNewTokens) {
    tokens.push(nextOf([...prompt, ...tokens], adapter));
    if (tokens.at(-1) === stop) return { tokens, reason: "stop" };
  }
  return { tokens, reason: "length" };
}

function ask(scheduler: Scheduler, { prompt, maxNewTokens, stop, adapter = 0 }: Asked, signal?: AbortSignal) {
  const tokens: number[] = [];
  const ended = scheduler.run({
    prompt,
    maxNewTokens,
    stopIds: new Set(stop === null ? [] : [stop]),
    choice: GREEDY,
    adapter,
    onToken: ({ id }) => {
      tokens.push(id);
      return false;
    },
    ...(signal === undefined ? {} : { signal }),
  });
  return { tokens, ended };
}

const asked: fc.Arbitrary<Asked> = fc.record({
  prompt: fc.array(fc.nat(VOCABULARY - 1), { minLength: 1, maxLength: 25 }),
  maxNewTokens: fc.integer({ min: 1, max: 20 }),
  stop: fc.option(fc.nat(VOCABULARY - 1)),
  adapter: fc.constantFrom(0, 0, 1, 5),
});
const limits: fc.Arbitrary<SchedulerLimits> = fc.record({
  sequences: fc.integer({ min: 1, max: 6 }),
  rows: fc.integer({ min: 44, max: 120 }),
  positions: fc.constant(1000),
  roundTokens: fc.integer({ min: 1, max: 30 }),
  rounds: fc.integer({ min: 1, max: 4 }),
  waiting: fc.constant(1000),
});
const delays = fc.array(fc.nat(20), { minLength: 1, maxLength: 5 });

test("every sequence says what it says alone, whatever runs beside it and wherever its pipeline breaks", async () => {
  await fc.assert(
    fc.asyncProperty(
      limits,
      delays,
      fc.array(fc.record({ asked, wait: fc.nat(30) }), { minLength: 1, maxLength: 12 }),
      fc.array(fc.nat(60), { maxLength: 2 }),
      async (own, pauses, requests, breaks) => {
        const scheduler = new Scheduler(own);
        let model = new CachedModel(own, pauses);
        let attached = scheduler.attach(model).catch(() => {});
        const replies: { asked: Asked; reply: ReturnType<typeof ask> }[] = [];
        const spread = async (ticks: number) => {
          for (let i = 0; i < ticks; i++) await Promise.resolve();
        };
        const asking = (async () => {
          for (const request of requests) {
            await spread(request.wait);
            replies.push({ asked: request.asked, reply: ask(scheduler, request.asked) });
          }
        })();
        for (const after of breaks) {
          await spread(after);
          model.broken = new PipeloraError("PL_WORKER_LOST", "gone");
          // The next round fails; with nothing to do the pipeline is left as it is.
          if (model.underWay > 0) await attached;
          model = new CachedModel(own, pauses);
          attached = scheduler.attach(model).catch(() => {});
        }
        await asking;
        for (const { asked: one, reply } of replies) {
          assert.equal(await reply.ended, alone(one).reason);
          assert.deepEqual(reply.tokens, alone(one).tokens);
        }
        const state = scheduler.state();
        assert.deepEqual([state.running, state.waiting, state.rowsInUse], [0, 0, 0]);
        assert.ok(model.mostUnderWay <= own.rounds);
        for (const round of model.rounds) {
          const tokens = round.reduce((sum, entry) => sum + entry.tokens.length, 0);
          assert.ok(tokens <= Math.max(own.roundTokens, own.sequences + 1));
        }
        scheduler.detach();
        await attached;
      },
    ),
    { numRuns: 300 },
  );
});

test("those that are given up leave nothing behind, and the others do not notice", async () => {
  await fc.assert(
    fc.asyncProperty(
      limits,
      delays,
      fc.array(fc.record({ asked, leaves: fc.option(fc.nat(80)) }), { minLength: 1, maxLength: 10 }),
      async (own, pauses, requests) => {
        const scheduler = new Scheduler(own);
        scheduler.attach(new CachedModel(own, pauses)).catch(() => {});
        const gone = new Error("gone");
        const all = requests.map(({ asked: one, leaves }) => {
          const leaving = new AbortController();
          const reply = ask(scheduler, one, leaving.signal);
          const left = (async () => {
            if (leaves === null) return;
            for (let i = 0; i < leaves; i++) await Promise.resolve();
            leaving.abort(gone);
          })();
          return { one, reply, left };
        });
        for (const { one, reply, left } of all) {
          await left;
          const { tokens, reason } = alone(one);
          const ended = await reply.ended.catch((error: unknown) => error);
          if (ended === gone) assert.deepEqual(reply.tokens, tokens.slice(0, reply.tokens.length));
          else assert.deepEqual([ended, reply.tokens], [reason, tokens]);
        }
        // What was under way for those that left comes back once more.
        for (let i = 0; i < 200; i++) await Promise.resolve();
        const state = scheduler.state();
        assert.deepEqual([state.running, state.waiting, state.rowsInUse], [0, 0, 0]);
      },
    ),
    { numRuns: 200 },
  );
});

test("long prompts go in pieces beside the next tokens of others, several pieces at a time over several stages", async () => {
  const own = { ...LIMITS, rows: 200, positions: 200, rounds: 3 };
  const model = new CachedModel(own, [9]);
  const scheduler = new Scheduler(own);
  scheduler.attach(model).catch(() => {});
  const talker = ask(scheduler, { prompt: [1], maxNewTokens: 30, stop: null });
  await Promise.resolve();
  const reader = ask(scheduler, { prompt: Array.from({ length: 60 }, (_, i) => i % 7), maxNewTokens: 1, stop: null });
  await Promise.all([talker.ended, reader.ended]);
  const pieces = model.rounds.flatMap((round) => round.filter(({ length }) => length === 60));
  assert.equal(
    pieces.reduce((sum, { tokens }) => sum + tokens.length, 0),
    60,
  );
  assert.ok(pieces.length >= 60 / 8);
  assert.ok(pieces.slice(0, -1).every(({ draw }) => draw === null) && pieces.at(-1)!.draw !== null);
  assert.ok(model.rounds.some((round) => round.length === 2));
  assert.ok(model.mostUnderWay > 1);
});

test("more than may wait is refused with a time; what never fits, by name", async () => {
  const own = { ...LIMITS, sequences: 2, waiting: 3 };
  const scheduler = new Scheduler(own);
  const one: Asked = { prompt: [1, 2], maxNewTokens: 5, stop: null };
  const taken = Array.from({ length: 5 }, () => ask(scheduler, one));
  await assert.rejects(ask(scheduler, one).ended, (error) => {
    assert.ok(error instanceof Busy && error.retryAfterS >= 1);
    return error.code === "PL_SERVER_BUSY";
  });
  assert.throws(() => scheduler.expectRoom(1), Busy);
  scheduler.attach(new CachedModel(own)).catch(() => {});
  await Promise.all(taken.map(({ ended }) => ended));
  scheduler.expectRoom(5);
  assert.throws(() => scheduler.expectRoom(6), Busy);

  const long = { prompt: new Array(40).fill(1), maxNewTokens: 11, stop: null };
  await assert.rejects(ask(scheduler, long).ended, { code: "PL_REQUEST_INVALID", message: /40 .* 11 .* 50/ });
  assert.equal(await ask(scheduler, { ...long, maxNewTokens: 10 }).ended, "length");
  await assert.rejects(ask(scheduler, { ...one, prompt: [] }).ended, { code: "PL_REQUEST_INVALID" });
  // The last token needs no row.
  const small = new Scheduler({ ...own, rows: 7 });
  small.attach(new CachedModel({ ...own, rows: 7 })).catch(() => {});
  assert.equal(await ask(small, { ...one, maxNewTokens: 6 }).ended, "length");
  await assert.rejects(ask(small, { ...one, maxNewTokens: 7 }).ended, { code: "PL_REQUEST_INVALID" });
});

test("a first come is not overtaken by a smaller one", async () => {
  const own = { ...LIMITS, sequences: 3, rows: 20 };
  const model = new CachedModel(own);
  const scheduler = new Scheduler(own);
  scheduler.attach(model).catch(() => {});
  const sized = (size: number) =>
    ask(scheduler, { prompt: new Array(size).fill(2), maxNewTokens: 3, stop: null }).ended;
  await Promise.all([sized(12), sized(15), sized(1)]);
  const begins = [12, 15, 1].map((size) =>
    model.rounds.findIndex((round) => round.some(({ length }) => length === size)),
  );
  assert.deepEqual(
    begins,
    [...begins].sort((a, b) => a - b),
  );
  assert.ok(begins[1]! > 2);
});

test("a pause answers those that wait then, leaves later ones for the next, and hands a failure on", async () => {
  const scheduler = new Scheduler(LIMITS);
  const one: Asked = { prompt: [3, 1], maxNewTokens: 6, stop: null };
  const model = new CachedModel(LIMITS, [3]);
  await scheduler.answerWaiting(model);
  assert.equal(model.rounds.length, 0);
  const early = [ask(scheduler, one), ask(scheduler, one)];
  let late: ReturnType<typeof ask> | null = null;
  early[0]!.ended.then(() => {
    late = ask(scheduler, one);
  });
  await scheduler.answerWaiting(model);
  await Promise.all(early.map(({ ended }) => ended));
  assert.equal(scheduler.state().waiting, 1);
  const rounds = model.rounds.length;
  for (let i = 0; i < 100; i++) await Promise.resolve();
  assert.equal(model.rounds.length, rounds);
  model.broken = new PipeloraError("PL_WORKER_LOST", "gone");
  await assert.rejects(scheduler.answerWaiting(model), { code: "PL_WORKER_LOST" });
  await scheduler.answerWaiting(new CachedModel(LIMITS));
  assert.equal(await late!.ended, "length");
  assert.deepEqual(late!.tokens, alone(one).tokens);
});

test("what had begun in a pause whose runner failed fails too: another one's weights may differ", async () => {
  const own = { ...LIMITS, sequences: 1 };
  const scheduler = new Scheduler(own);
  const one: Asked = { prompt: [3, 1], maxNewTokens: 6, stop: null };
  const model = new CachedModel(own);
  const begun = ask(scheduler, one);
  const waiting = ask(scheduler, one);
  const lost = new PipeloraError("PL_WORKER_LOST", "gone");
  await assert.rejects(
    scheduler.answerWaiting({
      infer: async (round) => {
        if (begun.tokens.length === 3) throw lost;
        return model.infer(round);
      },
    }),
    lost,
  );
  await assert.rejects(begun.ended, lost);
  await scheduler.answerWaiting(new CachedModel(own));
  assert.equal(await waiting.ended, "length");
  assert.deepEqual(waiting.tokens, alone(one).tokens);
});

test("one sequence without a token fails alone; one that breaks every pipeline is given up", async () => {
  const scheduler = new Scheduler(LIMITS);
  const inner = new CachedModel(LIMITS);
  const failure = new PipeloraError("PL_ENGINE_FAILED", "NaN");
  scheduler
    .attach({
      infer: async (round) => {
        const drawn = await inner.infer(round);
        return drawn.map((token, i) => (round.entries[i]!.length === 5 ? { ...token, failure } : token));
      },
    })
    .catch(() => {});
  const bad = ask(scheduler, { prompt: [1, 2, 3, 4, 5], maxNewTokens: 4, stop: null });
  const good = ask(scheduler, { prompt: [1, 2, 3], maxNewTokens: 4, stop: null });
  await assert.rejects(bad.ended, failure);
  assert.equal(await good.ended, "length");

  const lost = new PipeloraError("PL_WORKER_LOST", "gone");
  const doomed = ask(scheduler, { prompt: [1], maxNewTokens: 4, stop: null });
  for (let tries = 0; tries < 3; tries++) {
    await assert.rejects(scheduler.attach({ infer: () => Promise.reject(lost) }), lost);
  }
  await assert.rejects(doomed.ended, lost);
  const waiting = ask(scheduler, { prompt: [1], maxNewTokens: 4, stop: null });
  scheduler.fail(lost);
  await assert.rejects(waiting.ended, lost);
});

test("adapters take turns, none of them for long while another waits", async () => {
  const model = new CachedModel(LIMITS);
  const rounds: number[] = [];
  const scheduler = new Scheduler(LIMITS);
  scheduler
    .attach({
      infer: (round) => {
        rounds.push(round.adapter);
        return model.infer(round);
      },
    })
    .catch(() => {});
  const replies = [0, 1, 1, 2].map((adapter) => ask(scheduler, { prompt: [3], maxNewTokens: 14, stop: null, adapter }));
  await Promise.all(replies.map(({ ended }) => ended));
  const changes = rounds.filter((adapter, place) => place > 0 && adapter !== rounds[place - 1]).length;
  assert.ok(changes <= 4, rounds.join(""));
  const long = [0, 1].map((adapter) => ask(scheduler, { prompt: [3], maxNewTokens: 29, stop: null, adapter }));
  rounds.length = 0;
  await Promise.all(long.map(({ ended }) => ended));
  assert.ok(rounds.indexOf(1) <= 17, rounds.join(""));
});
