import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { type Copy, DockerfileParser, type From, type Instruction } from "dockerfile-ast";
import { validate } from "dockerfile-utils";
import { PACKAGE_ROOT } from "../../../src/common/root.ts";
import { readJson } from "../../support/processes/cli.ts";

const text = readFileSync(join(PACKAGE_ROOT, "deploy", "docker", "Dockerfile"), "utf8");
const dockerfile = DockerfileParser.parse(text);

interface Stage {
  readonly image: string;
  readonly instructions: readonly Instruction[];
}

const stages = new Map<string, Stage>();
for (const instruction of dockerfile.getInstructions()) {
  if (instruction.getKeyword() === "FROM") {
    const from = instruction as From;
    stages.set(from.getBuildStage()!, { image: from.getImage()!, instructions: [] });
  } else {
    const name = [...stages.keys()].at(-1)!;
    const { image, instructions } = stages.get(name)!;
    stages.set(name, { image, instructions: [...instructions, instruction] });
  }
}

/** A stage's instructions after those of the stages it builds on. */
function whole(name: string): Instruction[] {
  const stage = stages.get(name);
  return stage === undefined ? [] : [...whole(stage.image), ...stage.instructions];
}

function last(name: string, keyword: string): string {
  return whole(name)
    .filter((instruction) => instruction.getKeyword() === keyword)
    .at(-1)!
    .getArgumentsContent()!;
}

test("the Dockerfile has no fault that a linter sees", () => {
  assert.deepEqual(validate(text), []);
});

test("stages build on Debian's Node, or on each other", () => {
  for (const [name, { image }] of stages) {
    assert.ok(
      stages.has(image) || /^(node:20-bookworm(-slim)?|debian:bullseye-slim)$/.test(image),
      `${name} is FROM ${image}`,
    );
  }
});

test("what is copied exists: in the repository and let through, or in a stage before", () => {
  const allowed = readFileSync(join(PACKAGE_ROOT, "deploy", "docker", "Dockerfile.dockerignore"), "utf8")
    .split("\n")
    .filter((line) => line.startsWith("!"))
    .map((line) => line.slice(1));
  const copied = new Set<string>();
  for (const instruction of dockerfile.getCOPYs() as Copy[]) {
    const from = instruction.getFromFlag()?.getValue();
    const paths = instruction
      .getArguments()
      .map((argument) => argument.getValue())
      .slice(0, -1);
    if (from != null) {
      assert.ok(stages.has(from), `--from=${from}`);
      continue;
    }
    for (const path of paths) {
      assert.ok(existsSync(join(PACKAGE_ROOT, path)), path);
      assert.ok(allowed.includes(path), `${path} is kept out by Dockerfile.dockerignore`);
      copied.add(path);
    }
  }
  assert.deepEqual([...copied].sort(), [...allowed].sort());
});

for (const target of ["cpu", "cuda"]) {
  test(`${target}: the packages and the lockfile's modules, no root, signals forwarded`, () => {
    assert.equal(last(target, "USER"), "10001:10001");
    assert.equal(last(target, "ENTRYPOINT"), '["/usr/bin/tini", "--"]');
    const copies = whole(target).filter((instruction) => instruction.getKeyword() === "COPY");
    const contents = copies.map((instruction) => instruction.getArgumentsContent()!);
    // What an image holds of this repository came through the packages.
    assert.ok(
      copies.every((copy) => (copy as Copy).getFromFlag() != null),
      contents.join("\n"),
    );
    const made = (stage: string, flag: string) =>
      whole(stage).some((instruction) =>
        (instruction.getArgumentsContent() ?? "").includes(`scripts/package/package.mjs ${flag}`),
      );
    assert.ok(made("programs", "--programs") && made(`engine-${target}`, "--native"));
    assert.ok(copies.some((copy) => (copy as Copy).getFromFlag()?.getValue() === "programs"));
    const engine = copies.at(-1) as Copy;
    assert.equal(engine.getFromFlag()!.getValue(), `engine-${target}`);
    const runs = [...whole("runtime-modules")].map((instruction) => instruction.getArgumentsContent() ?? "");
    assert.ok(runs.some((run) => run.startsWith("npm ci --omit=dev")));
  });
}

test("the image's programs are the package's", () => {
  const { bin } = readJson<{ bin: Record<string, string> }>(PACKAGE_ROOT, "package.json");
  for (const [name, path] of Object.entries(bin)) {
    assert.ok(text.includes(`ln -s /opt/pipelora/${path} /usr/local/bin/${name}`), name);
  }
});
