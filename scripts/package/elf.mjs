// What a shared library asks of the machine it is loaded on.
import { execFileSync } from "node:child_process";
import { compareVersions } from "./glibc-floor.mjs";

/** Libraries that every machine with glibc and Node has. */
const SYSTEM = new Set([
  "libc.so.6",
  "libm.so.6",
  "libpthread.so.0",
  "libdl.so.2",
  "librt.so.1",
  "ld-linux-x86-64.so.2",
]);

/**
 * Why a library does not load on a machine with glibc `floor` and the files `beside`; empty: it does.
 * `readelf`: the output of `readelf --dynamic --dyn-syms --wide`.
 */
export function demands(readelf, floor, beside = []) {
  const faults = [];
  for (const [, name] of readelf.matchAll(/\(NEEDED\)\s+Shared library: \[([^\]]+)\]/g))
    if (!SYSTEM.has(name) && !beside.includes(name)) faults.push(`needs ${name}`);
  for (const [, bind, symbol, version] of readelf.matchAll(/ (GLOBAL|WEAK)\s+DEFAULT\s+UND (\w+)(?:@(\w+_[\d.]+))?/g)) {
    const glibc = version === undefined ? null : (/^GLIBC_([\d.]+)$/.exec(version)?.[1] ?? null);
    if (glibc !== null && compareVersions(glibc, floor) > 0) faults.push(`needs ${symbol} of glibc ${glibc}`);
    if (version !== undefined && /^(GLIBCXX|CXXABI)_/.test(version))
      faults.push(`needs ${symbol} of the machine's libstdc++`);
    if (version === undefined && bind === "GLOBAL" && !/^(napi_|node_api_|GOMP_|omp_)/.test(symbol))
      faults.push(`needs ${symbol}, of no library's version`);
  }
  return faults;
}

export function demandsOf(path, floor, beside = []) {
  return demands(
    execFileSync("readelf", ["--dynamic", "--dyn-syms", "--wide", path], { encoding: "utf8", maxBuffer: 1 << 28 }),
    floor,
    beside,
  );
}
