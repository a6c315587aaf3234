// Shared libraries of this machine's glibc as an older glibc had them: the same names, each symbol in its newest version up to a
// floor, and nothing behind them. What is linked against these stubs asks for no symbol that the older glibc lacks.
import { execFileSync } from "node:child_process";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/** The oldest glibc that the prebuilt addon runs on: Debian 11, Ubuntu 20.04. */
export const GLIBC_FLOOR = "2.31";

const LIBRARIES = ["libc.so.6", "libm.so.6"];

/** "2.2.5" before "2.31" */
export function compareVersions(a, b) {
  const [x, y] = [a, b].map((version) => version.split(".").map(Number));
  for (let i = 0; i < Math.max(x.length, y.length); i++) {
    const difference = (x[i] ?? 0) - (y[i] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}

/** Exported functions and objects of a library, by name: in which version they were at `floor`. */
export function symbolsUpTo(floor, dynamicSymbols) {
  const newest = new Map();
  for (const line of dynamicSymbols.split("\n")) {
    const found =
      /^\s*\d+: [0-9a-f]+\s+(\d+|0x[0-9a-f]+) (FUNC|IFUNC|OBJECT|TLS)\s+\w+\s+\w+\s+(\w+) (\w+)@@?GLIBC_([\d.]+)$/.exec(
        line,
      );
    if (found === null || found[3] === "UND") continue;
    const [, size, type, , name, version] = found;
    if (compareVersions(version, floor) > 0) continue;
    const known = newest.get(name);
    if (known === undefined || compareVersions(known.version, version) < 0)
      newest.set(name, { version, type, size: Number(size) });
  }
  return newest;
}

function stub(folder, library, floor) {
  const path = execFileSync("c++", [`-print-file-name=${library}`], { encoding: "utf8" }).trim();
  const symbols = symbolsUpTo(
    floor,
    execFileSync("readelf", ["--dyn-syms", "--wide", path], { encoding: "utf8", maxBuffer: 1 << 28 }),
  );
  const versions = [...new Set([...symbols.values()].map(({ version }) => version))].sort(compareVersions);
  const code = [".text"];
  let index = 0;
  for (const [name, { version, type, size }] of symbols) {
    const local = `stub_${index++}`;
    const kind = type === "OBJECT" ? "object" : type === "TLS" ? "tls_object" : "function";
    const section = kind === "function" ? ".text" : kind === "object" ? ".data" : '.section .tdata,"awT",@progbits';
    code.push(
      section,
      `.globl ${local}`,
      `.type ${local}, @${kind}`,
      `.size ${local}, ${Math.max(size, 1)}`,
      `${local}: .skip ${kind === "function" ? 1 : Math.max(size, 1)}`,
    );
    code.push(`.symver ${local}, ${name}@@GLIBC_${version}`);
  }
  const base = join(folder, library);
  writeFileSync(`${base}.s`, `${code.join("\n")}\n`);
  writeFileSync(
    `${base}.map`,
    versions.map((version, at) => `GLIBC_${version} {${at === 0 ? " local: stub_*;" : ""} };\n`).join(""),
  );
  execFileSync(
    "cc",
    ["-shared", "-nostdlib", `-Wl,-soname,${library}`, `-Wl,--version-script,${base}.map`, "-o", base, `${base}.s`],
    { stdio: "inherit" },
  );
}

/** Makes the stubs, under the names that a linker looks for. Returns the folder. */
export function glibcStubs(folder, floor = GLIBC_FLOOR) {
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  for (const library of LIBRARIES) stub(folder, library, floor);
  const shared = execFileSync("c++", ["-print-file-name=libc_nonshared.a"], { encoding: "utf8" }).trim();
  const libc = join(folder, "libc.so.6");
  writeFileSync(join(folder, "libc.so"), `GROUP ( ${libc} ${shared} )\n`);
  writeFileSync(join(folder, "libm.so"), `INPUT ( ${join(folder, "libm.so.6")} )\n`);
  // Parts of libc.so.6 in a newer glibc. In an older one they are libraries of their own, which Node has loaded.
  for (const name of ["pthread", "dl", "rt"]) writeFileSync(join(folder, `lib${name}.so`), `INPUT ( ${libc} )\n`);
  return folder;
}
