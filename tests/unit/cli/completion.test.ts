import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { test } from "node:test";
import { completionScript } from "../../../src/cli/completion.ts";
import { wholeProgram } from "../../../src/cli/parse.ts";
import { COMMANDS, flagOf } from "../../../src/config/option.ts";
import { optionsOf } from "../../../src/config/options.ts";

const program = wholeProgram();
const scripts = {
  bash: completionScript("bash", program),
  zsh: completionScript("zsh", program),
  fish: completionScript("fish", program),
};

/** What bash offers for these words, the last of which is being typed. */
function offered(...words: string[]): string[] {
  const run = `${scripts.bash}
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _pipelora; printf '%s\\n' "\${COMPREPLY[@]}"`;
  return execFileSync("bash", ["-c", run, "bash", ...words], { encoding: "utf8" })
    .split("\n")
    .filter(Boolean);
}

test("bash: commands, then their flags, for each program", () => {
  assert.deepEqual(offered("pipelora", "").sort(), [...COMMANDS].sort());
  assert.deepEqual(offered("coordinator", "gen"), ["generate"]);
  for (const command of COMMANDS) {
    const flags = optionsOf(command).map(([key]) => flagOf(key));
    assert.deepEqual(offered("pipelora", command, "--").sort(), [...flags, "--help"].sort(), command);
  }
  assert.ok(offered("coordinator", "--lear").includes("--learning-rate"), "without a command its flags are train's");
  assert.deepEqual(offered("/usr/bin/worker", "--coord"), ["--coordinator"]);
  assert.deepEqual(offered("pipelora", "train", "--model", ""), []);
});

test("zsh and fish: every command, and every flag of it", () => {
  for (const command of COMMANDS) {
    assert.ok(scripts.zsh.includes(`'${command}:`), command);
    assert.ok(scripts.fish.includes(`-a ${command} -d `), command);
    for (const [key] of optionsOf(command)) {
      assert.ok(scripts.zsh.includes(`'${flagOf(key)}:`), key);
      assert.ok(scripts.fish.includes(` -l ${flagOf(key).slice(2)} `), key);
    }
  }
});

for (const [shell, script] of Object.entries(scripts)) {
  const missing = spawnSync(shell, ["--version"]).status !== 0 && `no ${shell} here`;
  test(`${shell} reads its script`, { skip: missing }, () => {
    const { status, stderr } = spawnSync(shell, ["-n"], { input: script, encoding: "utf8" });
    assert.equal(status, 0, stderr);
  });
}
