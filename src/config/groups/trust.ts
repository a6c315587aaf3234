import { flag, fromEnvironment, oneOrMore, option, optional, positive, RUNS, text } from "./vocabulary.ts";

const MEMBERS = [...RUNS, "worker"] as const;

/** Options that say who belongs to the cluster. A pod gets them from its environment and from mounted files. */
export const trustOptions = {
  tls_ca: fromEnvironment(
    "PIPELORA_TLS_CA",
    option("string", "Trust", MEMBERS, optional(text), "Authorities whose certificates are accepted (PEM).", "FILE"),
  ),
  tls_cert: fromEnvironment(
    "PIPELORA_TLS_CERT",
    option("string", "Trust", MEMBERS, optional(text), "This process's certificate, intermediates after it.", "FILE"),
  ),
  tls_key: fromEnvironment(
    "PIPELORA_TLS_KEY",
    option("string", "Trust", MEMBERS, optional(text), "The certificate's private key.", "FILE"),
  ),
  tls_name: fromEnvironment(
    "PIPELORA_TLS_NAME",
    option(
      "string",
      "Trust",
      [...MEMBERS, "certs"],
      text.default("pipelora"),
      "DNS name that every certificate of the cluster carries.",
      "NAME",
    ),
  ),
  join_token: {
    ...fromEnvironment(
      "PIPELORA_JOIN_TOKEN",
      option(
        "string",
        "Trust",
        MEMBERS,
        optional(text),
        "Secret that workers must know; others see it on the command line, so prefer the file.",
        "TOKEN",
      ),
    ),
    secret: true as const,
  },
  join_token_file: fromEnvironment(
    "PIPELORA_JOIN_TOKEN_FILE",
    option("string", "Trust", MEMBERS, optional(text), "File that holds the join token.", "FILE"),
  ),
  insecure: option("boolean", "Trust", [...MEMBERS, "ui"], flag(), "Allow plaintext beyond loopback."),
  names: option("list", "Trust", ["certs"], optional(oneOrMore), "Nodes to make certificates for.", "A,B,…"),
  days: option("integer", "Trust", ["certs"], positive.default(365), "Days for which the certificates are valid."),
};
