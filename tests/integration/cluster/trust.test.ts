import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { connect as connectTls } from "node:tls";
import { goldenFlags, goldenRun } from "../../support/models/golden.ts";
import { bothAuthorities, certificates, tlsFiles, tlsFlags } from "../../support/processes/certificates.ts";
import {
  coordinator,
  events,
  outcome,
  startCoordinator,
  startWorker,
  temporaryFolder,
} from "../../support/processes/cli.ts";
import { freePort } from "../../support/processes/ports.ts";

const golden = goldenRun("qwen2-gqa-tied");
const long = { ...golden, args: { ...golden.args, num_train_epochs: 40, save_steps: 1000 } };
const adapter = (dir: string) => readFileSync(join(dir, "adapter_model.safetensors"));

function read(dir: string, name: string) {
  const { cert, key } = tlsFiles(dir, name);
  return { cert: readFileSync(cert), key: readFileSync(key) };
}

test("whoever does not belong is refused and logged while a run goes on over mTLS to the same bits", async (t) => {
  const root = temporaryFolder(t);
  const [ours, theirs] = [join(root, "ours"), join(root, "theirs")];
  assert.equal((await coordinator(["certs", "--output-dir", ours, "--names", "head,n1,n2", "--days", "1"])).code, 0);
  await certificates(theirs, ["n2"]);
  await certificates(join(root, "old"), ["n2"], -1);
  const both = bothAuthorities(join(root, "both.crt"), ours, theirs);
  const [secret, guess] = [join(root, "secret"), join(root, "guess")];
  writeFileSync(secret, "a secret of this run\n");
  writeFileSync(guess, "a guess\n");
  const port = await freePort();
  const joining = ["--coordinator", `127.0.0.1:${port}`, "--devices", "cpu", "--join-token-file", secret];
  const member = (name: string) =>
    outcome(startWorker([...joining, ...tlsFlags(ours, name), "--node-name", name, "--join-timeout", "30"]));
  const stranger = async (name: string, flags: string[]) => {
    const ended = await outcome(startWorker([...joining, "--node-name", name, "--join-timeout", "3", ...flags]));
    return [name, ended] as const;
  };
  const output = join(root, "run");
  const run = startCoordinator(
    goldenFlags(
      long,
      output,
      ...["--listen", `127.0.0.1:${port}`, "--nodes", "n1,n2", "--join-token-file", secret],
      ...tlsFlags(ours, "head"),
      ...["--log-level", "info"],
    ),
  );
  let disturbed = false;
  const running = outcome(run, (text) => {
    if (disturbed || !text.includes('"event":"log"')) return;
    disturbed = true;
    const noise = connect(port, "127.0.0.1", () => noise.write("noise, and more noise\r\n\r\n"));
    const believed = readFileSync(both);
    const foreign = connectTls({ port, ...read(theirs, "n2"), ca: believed, servername: "pipelora" });
    for (const socket of [noise, foreign]) socket.on("error", () => {});
  });
  const first = member("n1");
  await new Promise<void>((resolve) => {
    run.stderr.on("data", (text: Buffer) => text.includes("worker n1/cpu") && resolve());
  });
  const ended = Object.fromEntries(
    await Promise.all([
      stranger("plain", []),
      stranger("foreign", tlsFlags(theirs, "n2", both)),
      stranger("expired", tlsFlags(join(root, "old"), "n2")),
      stranger("guessing", [...tlsFlags(ours, "n2"), "--join-token-file", guess]),
      stranger("unexpected", tlsFlags(ours, "n2")),
      stranger("n1", [...tlsFlags(ours, "n2"), "--join-timeout", "20"]),
    ]),
  );
  const second = member("n2");
  const { code, stdout, stderr } = await running;
  assert.equal(code, 0, stderr);
  assert.ok(disturbed);
  assert.equal((await coordinator(goldenFlags(long, join(root, "calm"), "--workers", "2"))).code, 0);
  assert.deepEqual(adapter(output), adapter(join(root, "calm")));
  assert.equal(events(stdout, "note").filter(({ text }) => String(text).includes("resumed")).length, 0);
  for (const { code: left } of [await first, await second]) assert.equal(left, 0);

  const expected: Record<string, RegExp> = {
    plain: /PL_WORKER_MISSING.*does it expect TLS|PL_WORKER_MISSING.*closed the connection/s,
    foreign: /PL_PEER_UNTRUSTED.*refuses this process's certificate/s,
    expired: /PL_TLS_INVALID.*expired at/s,
    guessing: /PL_JOIN_REFUSED.*join token is another/s,
    unexpected: /PL_JOIN_REFUSED.*none of n1, n2/s,
    n1: /PL_JOIN_REFUSED.*node name "n1" is held by/s,
  };
  for (const [name, reason] of Object.entries(expected)) {
    assert.notEqual(ended[name]!.code, 0, name);
    assert.match(ended[name]!.stderr, reason);
  }
  assert.match(stderr, /refused a connection of 127\.0\.0\.1:\d+: its certificate: SELF_SIGNED/);
  assert.match(stderr, /refused a connection of .*(wrong version|packet length|http request)/i);
  assert.match(stderr, /join token is another/);
  assert.match(stderr, /"unexpected" is none of/);
  const args = readFileSync(join(output, "checkpoint-120", "training_args.json"), "utf8");
  assert.ok(!args.includes("a secret of this run") && !args.includes('"join_token"'));
  assert.ok(!(stdout + stderr).includes("a secret of this run"));
});
