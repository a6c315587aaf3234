import { z } from "zod";
import { count, flag, fromEnvironment, oneOrMore, option, optional, positive, RUNS, text } from "./vocabulary.ts";

export const processOptions = {
  workers: option(
    "integer",
    "Processes",
    RUNS,
    optional(positive),
    "Local CPU workers to start when there is no GPU; none: 1.",
  ),
  threads: option(
    "integer",
    "Processes",
    [...RUNS, "worker"],
    optional(positive),
    "Threads of each CPU worker; none: its share of the cores.",
  ),
  listen: option(
    "string",
    "Processes",
    RUNS,
    optional(text),
    "Address to wait on for workers of other nodes.",
    "HOST:PORT",
  ),
  nnodes: option("integer", "Processes", RUNS, positive.default(1), "Nodes to wait for with --listen."),
  preflight_only: option(
    "boolean",
    "Processes",
    ["train"],
    flag(),
    "Wait for the workers, check nodes and links, print the findings, and stop before a weight is read.",
  ),
  nodes: option(
    "list",
    "Processes",
    RUNS,
    optional(oneOrMore),
    "Names of the nodes to wait for with --listen, in place of --nnodes; others are refused.",
  ),
  join_timeout: option(
    "number",
    "Processes",
    [...RUNS, "worker"],
    z.number().positive().default(120),
    "Seconds to wait for workers.",
    "SECONDS",
  ),
  link_timeout: option(
    "number",
    "Processes",
    RUNS,
    z.number().positive().default(300),
    "Seconds after which a tensor that a peer has not sent counts as lost.",
    "SECONDS",
  ),
  max_restarts: option(
    "integer",
    "Processes",
    ["train"],
    count.default(3),
    "How often a run goes on from its last safe point after a worker was lost.",
  ),
  coordinator: fromEnvironment(
    "PIPELORA_COORDINATOR",
    option("string", "Processes", ["worker"], optional(text), "Address of the coordinator.", "HOST:PORT"),
  ),
  devices: option("list", "Processes", ["worker"], optional(oneOrMore), "Devices to use: cuda:0,cuda:1 or cpu,cpu."),
  node_name: fromEnvironment(
    "PIPELORA_NODE_NAME",
    option("string", "Processes", ["worker"], optional(text), "Name of this node; none: the host's.", "NAME"),
  ),
  bind: option(
    "string",
    "Processes",
    ["worker"],
    optional(text),
    "Address to listen on for other workers; none: that of the interface which reaches the coordinator.",
    "HOST",
  ),
  advertise: fromEnvironment(
    "PIPELORA_ADVERTISE",
    option(
      "string",
      "Processes",
      ["worker"],
      optional(text),
      "Name or address by which other workers reach this one; none: the one it listens on.",
      "HOST",
    ),
  ),
};
