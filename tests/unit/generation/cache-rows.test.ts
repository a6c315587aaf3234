import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { CacheRows } from "../../../src/generation/cache-rows.ts";

test("runs never overlap, none is lost, and what fits is given", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 60 }),
      fc.array(fc.tuple(fc.boolean(), fc.nat(30)), { maxLength: 200 }),
      (total, steps) => {
        const rows = new CacheRows(total);
        const held: { first: number; count: number }[] = [];
        const owner = new Array<boolean>(total).fill(false);
        for (const [takes, number] of steps) {
          if (takes) {
            const count = 1 + number;
            const first = rows.take(count);
            if (first === null) {
              assert.ok(!owner.join("").includes("false".repeat(count)), `${count} of ${owner}`);
              continue;
            }
            for (let row = first; row < first + count; row++) {
              assert.equal(owner[row], false);
              owner[row] = true;
            }
            held.push({ first, count });
          } else if (held.length > 0) {
            const [{ first, count } = { first: 0, count: 0 }] = held.splice(number % held.length, 1);
            rows.give(first, count);
            owner.fill(false, first, first + count);
          }
          assert.equal(rows.free, owner.filter((taken) => !taken).length);
        }
        for (const { first, count } of held) rows.give(first, count);
        assert.equal(rows.take(total), 0);
      },
    ),
  );
});
