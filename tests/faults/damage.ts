import { readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { choose } from "./drawing.ts";

const PAGE = 4096;

/** What can happen to a file of a checkpoint. */
const DAMAGES: Readonly<Record<string, (path: string, place: number) => void>> = {
  "a flipped bit": (path, place) => {
    const bytes = readFileSync(path);
    const bit = Math.floor(place * bytes.length * 8);
    bytes[bit >> 3]! ^= 1 << (bit & 7);
    writeFileSync(path, bytes);
  },
  "a cut": (path, place) => truncateSync(path, Math.floor(place * readFileSync(path).length)),
  "a page of zeros": (path, place) => {
    const bytes = readFileSync(path);
    const page = Math.floor((place * bytes.length) / PAGE) * PAGE;
    writeFileSync(path, bytes.fill(0, page, Math.min(bytes.length, page + PAGE)));
  },
  "a missing file": (path) => rmSync(path),
};

/** Damages one file of a checkpoint. Returns its path, and what was done. */
export function damageCheckpoint(dir: string, draw: (decision: string) => number): { path: string; done: string } {
  const name = choose(readdirSync(dir).sort(), draw("file"));
  const what = choose(Object.keys(DAMAGES), draw("damage"));
  const path = join(dir, name);
  DAMAGES[what]!(path, draw("place in the file"));
  return { path, done: `${what}: ${name}` };
}
