// What @peculiar/x509 injects its parts with.
import "reflect-metadata";
import { randomBytes, webcrypto } from "node:crypto";
import { readFile } from "node:fs/promises";
import { isIP } from "node:net";
import { join } from "node:path";
import {
  AuthorityKeyIdentifierExtension,
  BasicConstraintsExtension,
  cryptoProvider,
  ExtendedKeyUsage,
  ExtendedKeyUsageExtension,
  KeyUsageFlags,
  KeyUsagesExtension,
  PemConverter,
  SubjectAlternativeNameExtension,
  SubjectKeyIdentifierExtension,
  X509Certificate,
  X509CertificateGenerator,
} from "@peculiar/x509";
import { PipeloraError } from "../../common/errors.ts";
import { isFile, makeFolder } from "../../common/files.ts";
import type { Config } from "../../config/options.ts";
import { writeTextAtomically } from "../../formats/atomic-file.ts";

const CURVE = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
const DAY_MS = 24 * 3600 * 1000;
/** Clocks of nodes differ: a certificate is valid a little before it was made. */
const BACKDATED_MS = 10 * 60 * 1000;
/** The authority outlives its certificates. */
const AUTHORITY_DAYS = 3650;

interface Authority {
  readonly certificate: X509Certificate;
  readonly key: webcrypto.CryptoKey;
}

/**
 * A CA and a certificate a node, for those who have none: output_dir/ca.crt and ca.key, and output_dir/NAME/{ca.crt, tls.crt, tls.key}
 * as a Kubernetes TLS secret names them. Every certificate carries the cluster's name and its node's. A CA that is there is used
 * again, so that later nodes and renewed certificates belong to it. Returns the files written, relative to output_dir.
 * Errors: PL_CONFIG_INVALID for a name that is no folder's, PL_TLS_INVALID for half a CA, PL_OUTPUT_UNWRITABLE.
 */
export async function makeCertificates(
  config: Pick<Config, "output_dir" | "names" | "tls_name" | "days">,
): Promise<string[]> {
  cryptoProvider.set(webcrypto as unknown as Parameters<typeof cryptoProvider.set>[0]);
  const dir = config.output_dir!;
  for (const name of config.names!) {
    if (/^[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?$/.test(name)) continue;
    throw new PipeloraError("PL_CONFIG_INVALID", `--names: "${name}" is no host name or address`);
  }
  const written: string[] = [];
  const write = async (path: string, text: string, mode: number) => {
    await writeTextAtomically(join(dir, path), `${text}\n`, mode);
    written.push(path);
  };
  await makeFolder(dir);
  const authority = (await readAuthority(dir)) ?? (await makeAuthority(config.tls_name, write));
  for (const name of config.names!) {
    const { publicKey, privateKey } = await webcrypto.subtle.generateKey(CURVE, true, ["sign", "verify"]);
    const certificate = await X509CertificateGenerator.create({
      serialNumber: serial(),
      subject: `CN=${name}`,
      issuer: authority.certificate.subject,
      ...validity(config.days),
      publicKey,
      signingKey: authority.key,
      signingAlgorithm: CURVE,
      extensions: [
        new BasicConstraintsExtension(false, undefined, true),
        new KeyUsagesExtension(KeyUsageFlags.digitalSignature, true),
        // Every process is a server to some peers and a client of others.
        new ExtendedKeyUsageExtension([ExtendedKeyUsage.serverAuth, ExtendedKeyUsage.clientAuth]),
        new SubjectAlternativeNameExtension([
          { type: "dns", value: config.tls_name },
          { type: isIP(name) ? "ip" : "dns", value: name },
        ]),
        await AuthorityKeyIdentifierExtension.create(authority.certificate),
      ],
    });
    await write(join(name, "ca.crt"), authority.certificate.toString("pem"), 0o644);
    await write(join(name, "tls.crt"), certificate.toString("pem"), 0o644);
    await write(join(name, "tls.key"), await keyPem(privateKey), 0o600);
  }
  return written;
}

type Write = (path: string, text: string, mode: number) => Promise<void>;

async function makeAuthority(clusterName: string, write: Write): Promise<Authority> {
  const keys = await webcrypto.subtle.generateKey(CURVE, true, ["sign", "verify"]);
  const certificate = await X509CertificateGenerator.createSelfSigned({
    serialNumber: serial(),
    name: `CN=${clusterName} CA ${randomBytes(4).toString("hex")}`,
    ...validity(AUTHORITY_DAYS),
    keys,
    signingAlgorithm: CURVE,
    extensions: [
      new BasicConstraintsExtension(true, 0, true),
      new KeyUsagesExtension(KeyUsageFlags.keyCertSign | KeyUsageFlags.cRLSign, true),
      await SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  await write("ca.key", await keyPem(keys.privateKey), 0o600);
  await write("ca.crt", certificate.toString("pem"), 0o644);
  return { certificate, key: keys.privateKey };
}

async function readAuthority(dir: string): Promise<Authority | null> {
  const [certPath, keyPath] = [join(dir, "ca.crt"), join(dir, "ca.key")];
  const [hasCert, hasKey] = [await isFile(certPath), await isFile(keyPath)];
  if (!hasCert && !hasKey) return null;
  if (!hasCert || !hasKey) {
    throw new PipeloraError("PL_TLS_INVALID", `${dir} holds ${hasCert ? "ca.crt" : "ca.key"} without the other`, {
      hint: "Put both there to issue more certificates of that CA, or name an empty folder.",
    });
  }
  try {
    const [, key] = /-----BEGIN PRIVATE KEY-----([^-]+)-----END/.exec(await readFile(keyPath, "utf8"))!;
    return {
      certificate: new X509Certificate(await readFile(certPath, "utf8")),
      key: await webcrypto.subtle.importKey("pkcs8", Buffer.from(key!, "base64"), CURVE, false, ["sign"]),
    };
  } catch (cause) {
    throw new PipeloraError("PL_TLS_INVALID", `the CA in ${dir} can't be used: ${(cause as Error).message}`, {
      cause,
      hint: "It must be one that this command made (an unencrypted P-256 key); or name an empty folder.",
    });
  }
}

function validity(days: number): { notBefore: Date; notAfter: Date } {
  const now = Date.now();
  return { notBefore: new Date(now - BACKDATED_MS), notAfter: new Date(now + days * DAY_MS) };
}

/** 16 random bytes, positive. */
function serial(): string {
  const bytes = randomBytes(16);
  bytes[0] = (bytes[0]! & 0x7f) | 0x40;
  return bytes.toString("hex");
}

async function keyPem(key: webcrypto.CryptoKey): Promise<string> {
  return PemConverter.encode(await webcrypto.subtle.exportKey("pkcs8", key), "PRIVATE KEY");
}
