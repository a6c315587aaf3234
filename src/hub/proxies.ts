import { getProxyForUrl } from "proxy-from-env";
import { type Dispatcher, Pool, ProxyAgent, Agent as UndiciAgent, fetch as undiciFetch } from "undici";
import { PipeloraError } from "../common/errors.ts";

/**
 * fetch through the proxies that the environment names, as curl and Python's programs read them: http_proxy, https_proxy, all_proxy and
 * no_proxy, in either case. Node 20's own fetch does not look at them. Redirects to another host are judged by that host's name.
 * Error: PL_HUB_UNREACHABLE for a proxy that is no HTTP proxy.
 */
export async function proxiedFetch(url: string, init: RequestInit): Promise<Response> {
  const options = { ...init, dispatcher: agent() };
  return (await undiciFetch(url, options as Parameters<typeof undiciFetch>[1])) as unknown as Response;
}

let shared: UndiciAgent | null = null;

function agent(): UndiciAgent {
  shared ??= new UndiciAgent({ factory: dispatcherTo });
  return shared;
}

function dispatcherTo(origin: string | URL, options: object): Dispatcher {
  const proxy = getProxyForUrl(String(origin));
  if (proxy === "") return new Pool(origin, options);
  if (!/^https?:\/\//i.test(proxy)) {
    throw new PipeloraError(
      "PL_HUB_UNREACHABLE",
      `the environment names the proxy ${shownProxy(proxy)} for ${String(origin)}`,
      {
        hint: "Name an HTTP proxy (http://HOST:PORT) in https_proxy, or put the host into no_proxy.",
      },
    );
  }
  // A request in plain HTTP is sent to the proxy directly: most proxies tunnel to port 443 only.
  return new ProxyAgent({ ...options, uri: proxy, proxyTunnel: false });
}

/** Without its password. */
function shownProxy(proxy: string): string {
  return proxy.replace(/\/\/[^/@]*@/, "//");
}
