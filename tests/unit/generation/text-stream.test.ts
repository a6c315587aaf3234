import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import type { Tokenizer } from "../../../src/formats/tokenizer/tokenizer.ts";
import { TextStream } from "../../../src/generation/text-stream.ts";

/** One id a UTF-8 byte. */
const bytes = {
  decode: (ids: readonly number[]) => Buffer.from(ids).toString("utf8"),
} as unknown as Tokenizer;

/** All of a text at once: what stands before the first stop string that is completed. */
function expected(text: string, stops: readonly string[]): string {
  for (let end = 1; end <= text.length; end++) {
    const places = stops.filter((stop) => text.slice(0, end).endsWith(stop)).map((stop) => end - stop.length);
    if (places.length > 0) return text.slice(0, Math.min(...places));
  }
  return text;
}

test("pieces add up to the text before the first stop string, and nothing is taken back", () => {
  const letters = fc.constantFrom("a", "b", "ab", "é", "🎈", " ");
  fc.assert(
    fc.property(
      fc.array(letters, { maxLength: 30 }).map((parts) => parts.join("")),
      fc.array(
        fc.array(letters, { minLength: 1, maxLength: 4 }).map((parts) => parts.join("")),
        { maxLength: 3 },
      ),
      (text, stops) => {
        const stream = new TextStream(bytes, stops, false);
        let shown = "";
        let stopped = false;
        for (const id of Buffer.from(text)) {
          const piece = stream.push(id);
          shown += piece.text;
          assert.ok(expected(text, stops).startsWith(shown), `${JSON.stringify(shown)} of ${JSON.stringify(text)}`);
          stopped = piece.stopped;
          if (stopped) break;
        }
        if (!stopped) shown += stream.end();
        assert.equal(shown, expected(text, stops));
      },
    ),
    { numRuns: 500 },
  );
});

test("text that can't be the beginning of a stop string is shown at once", () => {
  const stream = new TextStream(bytes, ["END"], false);
  const shown = [..."so EN it E"].map((letter) => stream.push(letter.charCodeAt(0)).text);
  assert.deepEqual(shown, ["s", "o", " ", "", "", "EN ", "i", "t", " ", ""]);
  assert.equal(stream.end(), "E");
});
