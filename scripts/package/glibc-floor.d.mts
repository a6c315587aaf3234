export const GLIBC_FLOOR: string;
export function compareVersions(a: string, b: string): number;
export function symbolsUpTo(
  floor: string,
  dynamicSymbols: string,
): Map<string, { version: string; type: string; size: number }>;
export function glibcStubs(folder: string, floor?: string): string;
