// NCCL itself on one GPU: opening, a group of messages of one rank to itself, order with the engine's work, sums, and every way
// to fail that one GPU has. Needs Node and the addon alone: node tests/gpu/nccl.mjs [DEVICE]. Prints a JSON line a check; exits 1
// if one is off. With PIPELORA_NCCL_LIBRARY=build/native/comm/tests/libnccl_host.so and DEVICE cpu it runs anywhere.
import { createRequire } from "node:module";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

// As the worker program sets them.
process.env.CUDA_DEVICE_MAX_CONNECTIONS ??= "32";
process.env.NCCL_SOCKET_IFNAME ??= "lo";

const root = fileURLToPath(new URL("../..", import.meta.url));
const addon = createRequire(import.meta.url)(
  process.env.PIPELORA_ADDON ?? join(root, "build", "native", "pipelora.node"),
);
const device = process.argv[2] ?? "cuda:0";
// A communicator that nobody waits for a message of keeps no process alive.
const alive = setInterval(() => {}, 1000);
let failed = false;

function report(check, good, more = {}) {
  failed ||= !good;
  process.stdout.write(`${JSON.stringify({ check, ok: good, ...more })}\n`);
}

async function attempt(check, work) {
  const began = performance.now();
  try {
    const { ok = true, ...more } = (await work()) ?? {};
    report(check, ok, { ...more, ms: Math.round(performance.now() - began) });
  } catch (error) {
    report(check, false, { error: `${error.code ?? ""} ${error.message}` });
  }
}

const { nccl, cuda } = addon.capabilities();
report("capabilities", nccl.version !== null, {
  nccl,
  driver: cuda?.driver,
  devices: cuda?.devices,
  reason: cuda?.reason,
});
if (nccl.version === null) process.exit(1);

function open(id, rank, ranks, timeoutMs) {
  const failure = deferred();
  const communicator = new addon.Communicator({ device, id, rank, ranks, timeoutMs }, failure.resolve);
  return { communicator, failure: failure.promise };
}

function deferred() {
  let resolve;
  const promise = new Promise((settle) => {
    resolve = settle;
  });
  return { promise, resolve };
}

const engine = await addon.openEngine({
  device,
  threads: 1,
  computeDtype: "float32",
  arch: {
    ...{ hidden: 64, heads: 1, kvHeads: 1, headDim: 64, ffn: 64, vocab: 64, rmsEps: 1e-6, ropeBase: 10000 },
    ropeInvFreq: Float64Array.from({ length: 32 }, (_, i) => 10000 ** (-i / 32)),
    ...{ ropeAttentionScaling: 1, qwenLongSeqLength: 0, qwenDynamicNtk: false, qwenLogn: false },
  },
  arenaBytes: 512 << 20,
});

const floats = (count, seed) =>
  Float32Array.from({ length: count }, (_, i) => Math.fround(Math.sin(i + 1) * 10 ** ((i + seed) % 7)));
const bytesOf = ({ buffer, byteOffset, byteLength }) => new Uint8Array(buffer, byteOffset, byteLength);
const toSelf = (from, to, bytes) => [
  { sends: true, peer: 0, place: from, offset: 0, bytes },
  { sends: false, peer: 0, place: to, offset: 0, bytes },
];

/** What lies in a place, through the engine. */
async function read(place, shape, dtype) {
  const tensor = await engine.writeFrom(place, shape, dtype);
  const bytes = await engine.read(tensor);
  tensor.free();
  return bytes;
}

const one = open(addon.ncclUniqueId(), 0, 1, 60_000);
await attempt("one rank: a group to itself brings what the engine wrote, in the order of its work", async () => {
  const [rows, cols] = [300, 4096];
  const places = [one.communicator.place(rows * cols * 4), one.communicator.place(rows * cols * 4)];
  for (let round = 0; round < 20; round++) {
    const values = floats(rows * cols, round);
    const tensor = await engine.write([bytesOf(values)], [rows, cols], "float32");
    // Neither copy nor message is waited for before the next is queued.
    const copied = engine.readTo(tensor, places[0]);
    tensor.free();
    await copied;
    let announced = false;
    await one.communicator.exchange(toSelf(places[0], places[1], rows * cols * 4), () => {
      announced = true;
    });
    if (!announced) return { ok: false, problem: "onReady was not called" };
    if (Buffer.compare(await read(places[1], [rows, cols], "float32"), bytesOf(values)) !== 0)
      return { ok: false, round };
  }
  for (const place of places) place.free();
});

await attempt("bfloat16 and parts of places", async () => {
  const bytes = Uint8Array.from({ length: 2 * 64 * 10 }, (_, i) => (i % 2 === 0 ? i % 251 : 63));
  const tensor = await engine.write([bytes], [10, 64], "bfloat16");
  const [from, to] = [one.communicator.place(bytes.length), one.communicator.place(bytes.length)];
  await engine.readTo(tensor, from);
  tensor.free();
  const half = bytes.length / 2;
  await one.communicator.exchange(
    [
      { sends: true, peer: 0, place: from, offset: 0, bytes: half },
      { sends: true, peer: 0, place: from, offset: half, bytes: half },
      { sends: false, peer: 0, place: to, offset: half, bytes: half },
      { sends: false, peer: 0, place: to, offset: 0, bytes: half },
    ],
    null,
  );
  const expected = Buffer.concat([bytes.subarray(half), bytes.subarray(0, half)]);
  return { ok: Buffer.compare(await read(to, [10, 64], "bfloat16"), expected) === 0 };
});

await attempt("parts are added in their order, to the bits of JavaScript's sum", async () => {
  const [count, size] = [3, 100_003];
  const values = floats(count * size, 1);
  const tensor = await engine.write([bytesOf(values)], [count, size], "float32");
  const [parts, sum] = [one.communicator.place(values.byteLength), one.communicator.place(4 * size)];
  await engine.readTo(tensor, parts);
  tensor.free();
  await engine.sumParts(parts, count, size, sum);
  const expected = new Float32Array(size);
  for (let part = 0; part < count; part++) for (let i = 0; i < size; i++) expected[i] += values[part * size + i];
  return { ok: Buffer.compare(await read(sum, [1, size], "float32"), bytesOf(expected)) === 0 };
});

await attempt("speed of one rank to itself", async () => {
  const rate = async (bytes, rounds) => {
    const places = [one.communicator.place(bytes), one.communicator.place(bytes)];
    await one.communicator.exchange(toSelf(...places, bytes), null);
    const began = performance.now();
    for (let i = 0; i < rounds; i++) await one.communicator.exchange(toSelf(...places, bytes), null);
    for (const place of places) place.free();
    return (performance.now() - began) / rounds;
  };
  const large = 64 << 20;
  const [largeMs, smallMs] = [await rate(large, 50), await rate(4, 500)];
  return { GB_per_s: Math.round(large / 1e6 / largeMs), small_us: Math.round(1000 * smallMs) };
});

await attempt("a rank that NCCL refuses", async () => {
  const { communicator, failure } = open(addon.ncclUniqueId(), 3, 2, 10_000);
  const reason = await failure;
  communicator.close();
  return { ok: reason.includes("ncclCommInitRankConfig"), reason };
});

await attempt("a unique id that is none", async () => {
  const { communicator, failure } = open(new Uint8Array(128).fill(255), 0, 1, 10_000);
  const reason = await failure;
  communicator.close();
  return { reason };
});

await attempt("the other rank never comes", async () => {
  const { communicator, failure } = open(addon.ncclUniqueId(), 0, 2, 3_000);
  const reason = await failure;
  communicator.close();
  return { ok: reason === "not every rank of it came within 3 s", reason };
});

await attempt("closed while it opens", async () => {
  const { communicator } = open(addon.ncclUniqueId(), 0, 2, 60_000);
  const place = communicator.place(4);
  const waiting = communicator.exchange([{ sends: true, peer: 1, place, offset: 0, bytes: 4 }], null);
  waiting.catch(() => {});
  await new Promise((resolve) => setTimeout(resolve, 200));
  const began = performance.now();
  communicator.close();
  const reason = await waiting.then(
    () => "it went through",
    (error) => error.message,
  );
  return { ok: reason === "it was closed" && performance.now() - began < 5_000, reason };
});

if (!nccl.hostMemory) {
  await attempt("two ranks on one GPU are refused, not waited for", async () => {
    const id = addon.ncclUniqueId();
    const ends = [open(id, 0, 2, 20_000), open(id, 1, 2, 20_000)];
    const reasons = await Promise.all(ends.map(({ failure }) => failure));
    for (const { communicator } of ends) communicator.close();
    return { reasons };
  });
}

await attempt("a message that never comes is aborted at the deadline, and the GPU works on", async () => {
  const lone = open(addon.ncclUniqueId(), 0, 1, 2_000);
  const place = lone.communicator.place(1024);
  const outcome = await lone.communicator
    .exchange([{ sends: false, peer: 0, place, offset: 0, bytes: 1024 }], null)
    .then(
      () => "it went through",
      (error) => error.message,
    );
  lone.communicator.close();
  const values = floats(64, 3);
  const tensor = await engine.write([bytesOf(values)], [1, 64], "float32");
  const same = Buffer.compare(await engine.read(tensor), bytesOf(values)) === 0;
  tensor.free();
  return { ok: same && outcome !== "it went through", outcome };
});

await attempt("the first communicator is none the worse", async () => {
  const [from, to] = [one.communicator.place(256), one.communicator.place(256)];
  const values = floats(64, 5);
  const tensor = await engine.write([bytesOf(values)], [1, 64], "float32");
  await engine.readTo(tensor, from);
  tensor.free();
  await one.communicator.exchange(toSelf(from, to, 256), null);
  return { ok: Buffer.compare(await read(to, [1, 64], "float32"), bytesOf(values)) === 0 };
});

one.communicator.close();
await engine.close();
clearInterval(alive);
process.exit(failed ? 1 : 0);
