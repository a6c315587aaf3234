import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { makeCertificates } from "../../../src/coordinator/cluster/certificates.ts";

/** A CA in `dir` with a certificate for each name; negative days: expired ones. */
export async function certificates(dir: string, names: string[], days = 1, clusterName = "pipelora"): Promise<void> {
  await makeCertificates({ output_dir: dir, names, tls_name: clusterName, days });
}

export function tlsFiles(dir: string, name: string): { ca: string; cert: string; key: string } {
  return { ca: join(dir, name, "ca.crt"), cert: join(dir, name, "tls.crt"), key: join(dir, name, "tls.key") };
}

/** The flags by which a program takes the certificate of `name`. */
export function tlsFlags(dir: string, name: string, ca = tlsFiles(dir, name).ca): string[] {
  const { cert, key } = tlsFiles(dir, name);
  return ["--tls-ca", ca, "--tls-cert", cert, "--tls-key", key];
}

/** A file of both authorities: who has it believes either. */
export function bothAuthorities(path: string, one: string, other: string): string {
  writeFileSync(path, readFileSync(join(one, "ca.crt"), "utf8") + readFileSync(join(other, "ca.crt"), "utf8"));
  return path;
}
