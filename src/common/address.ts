/** "host:port" or "[v6]:port" in its parts; without a port: 0. */
export function splitAddress(address: string): { host: string; port: number } {
  const match = /^(?:\[([^\]]+)\]|([^:]*)|(.*:.*:.*))(?::(\d+))?$/.exec(address);
  return { host: match?.[1] ?? match?.[2] ?? match?.[3] ?? address, port: Number(match?.[4] ?? 0) };
}

export function joinAddress(host: string, port: number): string {
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}

/** The host's part is one that only processes of this machine reach. */
export function isLoopback(address: string): boolean {
  const { host } = splitAddress(address);
  return host === "localhost" || host === "::1" || /^127(\.\d{1,3}){3}$/.test(host);
}

/** The host's part means every interface. */
export function isWildcard(host: string): boolean {
  return host === "0.0.0.0" || host === "::" || host === "";
}

/** What is wrong with an address that should be HOST:PORT; null where nothing is. */
export function addressProblem(address: string): string | null {
  if (address.includes("://")) return "a scheme stands before it";
  if (/^\d+$/.test(address)) return "the host is missing";
  if (!address.startsWith("[") && address.split(":").length > 2) return "IPv6 stands in brackets";
  if (/[\s/]/.test(address)) return "it holds a space or a slash";
  const port = /:([^\]:]*)$/.exec(address)?.[1];
  if (port === undefined) return "the port is missing";
  return /^\d{1,5}$/.test(port) && Number(port) <= 65535 ? null : "the port is none";
}
