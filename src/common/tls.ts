import { createPrivateKey, X509Certificate } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { checkServerIdentity, type DetailedPeerCertificate, type PeerCertificate } from "node:tls";
import { PipeloraError } from "./errors.ts";

/** PEM files, as a Kubernetes secret mounts them. */
export interface TlsFiles {
  /** One or several authorities whose certificates are accepted. */
  readonly ca: string;
  /** This process's certificate, intermediates after it. */
  readonly cert: string;
  readonly key: string;
}

export interface TlsMaterial {
  readonly ca: Buffer;
  readonly cert: Buffer;
  readonly key: Buffer;
}

/** Both sides speak 1.3 and prefer the cipher that costs a tensor least. */
export const TLS_SETTINGS = {
  minVersion: "TLSv1.3",
  ciphers: "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256",
  honorCipherOrder: true,
} as const;

/**
 * This process's identity to its peers: a certificate, its key, and the authorities it accepts. The files are checked again for every new
 * connection, so replaced ones are used without a restart. A pair that is half replaced or wrong is skipped until both files fit.
 */
export class TlsIdentity {
  /** Every certificate of the cluster carries this name, whichever host or pod it is on. */
  readonly name: string;
  readonly #files: TlsFiles;
  readonly #warn: (problem: string) => void;
  #stamp: string;
  #material: TlsMaterial;

  /** Error: PL_TLS_INVALID, naming the file and what is wrong with it. */
  constructor(files: TlsFiles, name: string, warn: (problem: string) => void) {
    this.name = name;
    this.#files = files;
    this.#warn = warn;
    this.#stamp = this.#stampOf();
    this.#material = readMaterial(files, name);
  }

  /** The newest usable contents of the files; the same object while nothing has changed. */
  current(): TlsMaterial {
    const stamp = this.#stampOf();
    if (stamp === this.#stamp) return this.#material;
    this.#stamp = stamp;
    try {
      this.#material = readMaterial(this.#files, this.name);
    } catch (error) {
      this.#warn(`the replaced TLS files are not used: ${(error as Error).message}`);
    }
    return this.#material;
  }

  /** Why a peer's certificate does not make it a member of this cluster; undefined if it does. */
  refuses(certificate: PeerCertificate | DetailedPeerCertificate): Error | undefined {
    return checkServerIdentity(this.name, certificate as PeerCertificate);
  }

  #stampOf(): string {
    return Object.values(this.#files)
      .map((path) => {
        const found = statSync(path, { throwIfNoEntry: false });
        return found === undefined ? "none" : `${found.ino}/${found.size}/${found.mtimeMs}`;
      })
      .join();
  }
}

function readMaterial(files: TlsFiles, name: string): TlsMaterial {
  const material = { ca: readPem(files.ca), cert: readPem(files.cert), key: readPem(files.key) };
  const authorities = parse(files.ca, material.ca);
  const [own, ...chain] = parse(files.cert, material.cert);
  let key: ReturnType<typeof createPrivateKey>;
  try {
    key = createPrivateKey(material.key);
  } catch (cause) {
    throw invalid(`${files.key} holds no private key that can be read without a passphrase`, "", cause);
  }
  if (!own!.checkPrivateKey(key)) {
    throw invalid(`the key in ${files.key} does not belong to the certificate in ${files.cert}`);
  }
  for (const certificate of [own!, ...chain]) checkDates(files.cert, certificate);
  if (!issued(own!, chain, authorities)) {
    throw invalid(
      `${files.cert} (${oneLine(own!.subject)}) was not issued by an authority in ${files.ca}`,
      "Give every process a certificate of one authority, and that authority's certificate as --tls-ca.",
    );
  }
  if (own!.checkHost(name) === undefined) {
    throw invalid(
      `${files.cert} carries the names ${own!.subjectAltName ?? "(none)"}, expected the cluster's name DNS:${name} among them`,
      "Issue it with that name, or say the name that all your certificates carry with --tls-name.",
    );
  }
  return material;
}

function readPem(path: string): Buffer {
  try {
    return readFileSync(path);
  } catch (cause) {
    throw invalid(`${path} can't be read: ${(cause as Error).message}`, "", cause);
  }
}

function parse(path: string, pem: Buffer): X509Certificate[] {
  const blocks = pem.toString("latin1").match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
  try {
    if (blocks.length > 0) return blocks.map((block) => new X509Certificate(block));
  } catch (cause) {
    throw invalid(`${path} holds a malformed certificate: ${(cause as Error).message}`, "", cause);
  }
  throw invalid(`${path} holds no certificate in PEM form`);
}

function checkDates(path: string, certificate: X509Certificate): void {
  const [from, to] = [new Date(certificate.validFrom), new Date(certificate.validTo)];
  const now = new Date();
  const clock = `this machine's clock says ${now.toISOString()}`;
  if (now < from) {
    throw invalid(`${path} is valid from ${from.toISOString()} on; ${clock}`, "Set the clock, or issue it anew.");
  }
  if (now > to) throw invalid(`${path} expired at ${to.toISOString()}; ${clock}`, "Issue it anew, or set the clock.");
}

function issued(own: X509Certificate, chain: readonly X509Certificate[], authorities: readonly X509Certificate[]) {
  const signs = (issuer: X509Certificate, subject: X509Certificate) =>
    subject.checkIssued(issuer) && subject.verify(issuer.publicKey);
  let subject = own;
  for (let depth = 0; depth <= chain.length; depth++) {
    if (authorities.some((authority) => signs(authority, subject))) return true;
    const next = chain.find((candidate) => candidate !== subject && signs(candidate, subject));
    if (next === undefined) return false;
    subject = next;
  }
  return false;
}

const oneLine = (subject: string) => subject.replaceAll("\n", ", ");

function invalid(message: string, hint = "", cause?: unknown): PipeloraError {
  return new PipeloraError("PL_TLS_INVALID", message, {
    hint: hint || "`coordinator certs --output-dir DIR --names …` makes a CA and certificates.",
    cause,
  });
}
