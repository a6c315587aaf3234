const FIRST_LINE = "version https://git-lfs.github.com/spec/v1";

/** What is wrong with a file that is Git LFS' pointer instead of what it points to; null where it is none. */
export function lfsPointer(start: Uint8Array): string | null {
  const text = Buffer.from(start.subarray(0, FIRST_LINE.length)).toString("latin1");
  return text === FIRST_LINE
    ? 'it is a pointer of Git LFS, not the file itself: run "git lfs pull" in its folder'
    : null;
}
