/** What `make` gives, made at the first call: it costs a pass over rows or files, and several ask for it. */
export function once<T>(make: () => T): () => T {
  let made: { readonly value: T } | null = null;
  return () => {
    made ??= { value: make() };
    return made.value;
  };
}
