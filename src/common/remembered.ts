/** What `make` gives for an object that nobody changes, computed once for each: plans ask for the same figures hundreds of times. */
export function remembered<Of extends object, T>(make: (of: Of) => T): (of: Of) => T {
  const known = new WeakMap<Of, T>();
  return (of) => {
    const found = known.get(of);
    if (found !== undefined) return found;
    const made = make(of);
    known.set(of, made);
    return made;
  };
}
