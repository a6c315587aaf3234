import assert from "node:assert/strict";
import { test } from "node:test";
import { formatBytes } from "../../../src/common/bytes.ts";
import { budgetsOf, devicesFromMaxMemory, parseMaxMemory, parseSize } from "../../../src/plan/index.ts";
import { cpus, gpus } from "./models.ts";

const invalid = { code: "PL_CONFIG_INVALID" };

test("sizes are read as accelerate reads them", () => {
  const sizes: [string | number, number][] = [
    ["10GiB", 10 * 2 ** 30],
    ["10GB", 10e9],
    ["8Gb", 1e9],
    ["512MiB", 512 * 2 ** 20],
    ["200MB", 200e6],
    ["4KiB", 4096],
    ["4KB", 4000],
    ["1.5GiB", 1.5 * 2 ** 30],
    [" 3 gib ", 3 * 2 ** 30],
    ["1000", 1000],
    [123456, 123456],
    [0, 0],
  ];
  for (const [text, bytes] of sizes) assert.equal(parseSize(text), bytes, String(text));
});

test("sizes that are none are refused", () => {
  for (const bad of [
    "",
    "GiB",
    "ten GiB",
    "-1GB",
    "1e3",
    "10 TiBB",
    "0x10",
    Number.NaN,
    -1,
    Number.POSITIVE_INFINITY,
  ]) {
    assert.throws(() => parseSize(bad), invalid, String(bad));
  }
});

test("max_memory comes as JSON or as an object, devices ascending, cpu and disk last", () => {
  const parsed = parseMaxMemory('{"cpu": "30GB", "10": 5, "2": "1GiB", "0": "10GiB"}');
  assert.deepEqual(
    [...parsed],
    [
      [0, 10 * 2 ** 30],
      [2, 2 ** 30],
      [10, 5],
      ["cpu", 30e9],
    ],
  );
  assert.deepEqual([...parseMaxMemory({ "cuda:1": 7 })], [[1, 7]]);
});

test("max_memory that makes no sense is refused, with what was wrong", () => {
  const refuse = (value: string, message: RegExp) =>
    assert.throws(() => parseMaxMemory(value), { ...invalid, message });
  refuse("{", /not JSON/);
  refuse("[1]", /must be an object/);
  refuse("{}", /names no device/);
  refuse('{"gpu": 1}', /names device "gpu"/);
  refuse('{"0": "lots"}', /max_memory\["0"\] is "lots"/);
  refuse('{"0": null}', /max_memory\["0"\] is null/);
  refuse('{"0": 1, "cuda:0": 2}', /twice/);
});

test("budgets are max_memory's, else the devices' free memory less a reserve", () => {
  assert.deepEqual(
    [...budgetsOf(gpus(2, 100), null).bytes],
    [
      [0, 95],
      [1, 95],
    ],
  );
  assert.deepEqual([...budgetsOf(cpus(1, 100), null).bytes], [[0, 90]]);
  const given = budgetsOf(gpus(3, 100), parseMaxMemory({ 2: 50, 0: 0, cpu: 9 }));
  assert.deepEqual(
    [...given.bytes],
    [
      [0, 0],
      [2, 50],
    ],
  );
  assert.deepEqual(given.offload, ["cpu"]);
  assert.match(budgetsOf(gpus(1, 100), parseMaxMemory({ 0: 101 })).warnings[0]!, /more than its 100 B/);
});

test("budgets for devices that are not there, or of unknown size, are refused", () => {
  assert.throws(() => budgetsOf(gpus(2), parseMaxMemory({ 3: 1 })), {
    ...invalid,
    message: /device 3; the devices are 0, 1/,
  });
  assert.throws(() => budgetsOf(gpus(1, null), null), invalid);
});

test("devices on paper are those that max_memory names", () => {
  const devices = devicesFromMaxMemory(parseMaxMemory({ 3: 1, 1: 1, cpu: 1 }), "cuda");
  assert.deepEqual(
    devices.map(({ id, memoryBytes }) => [id, memoryBytes]),
    [
      [1, null],
      [3, null],
    ],
  );
});

test("bytes are shown in the largest unit that leaves a digit before the point", () => {
  const shown = [0, 17, 2048, 1.5 * 2 ** 20, 3.25 * 2 ** 30, 5 * 2 ** 40].map(formatBytes);
  assert.deepEqual(shown, ["0 B", "17 B", "2.0 KiB", "1.5 MiB", "3.25 GiB", "5.00 TiB"]);
});
