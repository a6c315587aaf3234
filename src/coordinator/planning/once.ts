/** The value of `make`, computed at the first call: it takes a pass over rows or files, and several callers ask for it. */
export function once<T>(make: () => T): () => T {
  let made: { readonly value: T } | null = null;
  return () => {
    made ??= { value: make() };
    return made.value;
  };
}
