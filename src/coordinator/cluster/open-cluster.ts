import { randomBytes } from "node:crypto";
import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import { engineOrigin, loadEngine } from "../../engine/index.ts";
import { openTrust, type TrustSettings } from "../../rpc/trust.ts";
import { Cluster } from "./cluster.ts";
import { localDevices } from "./local-devices.ts";

export type ClusterSettings = Pick<
  Config,
  | "listen"
  | "nodes"
  | "nnodes"
  | "workers"
  | "threads"
  | "health_listen"
  | "join_timeout"
  | "elastic"
  | "min_workers"
  | "log_format"
  | "log_level"
> &
  TrustSettings &
  TlsFiles;

type TlsFiles = Pick<Config, "tls_ca" | "tls_cert" | "tls_key" | "tls_name">;

/** Opens the cluster of a run: local workers, or those that will join over the network. */
export function openCluster(config: ClusterSettings, log: Logger): Promise<Cluster> {
  const capabilities = loadEngine().capabilities();
  log.debug(engineOrigin());
  const { devices, threads, pin } = localDevices(config, capabilities);
  const { cuda } = capabilities;
  if (config.listen === null && config.workers === null && cuda !== null && cuda.driver > 0 && cuda.reason !== null) {
    log.warn(`This machine has an NVIDIA driver, but no GPU is used: ${cuda.reason}.`);
  }
  const trust = openTrust(config, (problem) => log.warn(problem));
  // Workers started here know a secret of this run, so that no other user of the machine joins it.
  const secret = trust.token() ?? randomBytes(24).toString("base64url");
  return Cluster.open({
    listen: config.listen,
    nodes: config.nodes,
    trust: config.listen === null ? { ...trust, token: () => secret } : trust,
    tlsFlags: trust.tls === null ? [] : tlsFlags(config),
    nnodes: config.nodes?.length ?? config.nnodes,
    healthListen: config.health_listen,
    joinTimeoutS: config.join_timeout,
    minWorkers: config.elastic ? config.min_workers : null,
    localDevices: devices,
    localThreads: threads,
    localPin: pin,
    build: capabilities.build,
    logFormat: config.log_format,
    logLevel: config.log_level,
    log,
  });
}

function tlsFlags({ tls_ca, tls_cert, tls_key, tls_name }: TlsFiles): string[] {
  return ["--tls-ca", tls_ca!, "--tls-cert", tls_cert!, "--tls-key", tls_key!, "--tls-name", tls_name];
}
