import { z } from "zod";
import { choice, option, optional, positive, RUNS, TRAINS, text } from "./vocabulary.ts";

export const placementOptions = {
  device_map: option(
    "string",
    "Placement",
    RUNS,
    z.union([z.record(z.string(), z.union([z.number().int(), z.string()])), text]).default("auto"),
    "auto, balanced, balanced_low_0, sequential, or a JSON file {module: device}.",
    "NAME|FILE",
  ),
  max_memory: option(
    "json",
    "Placement",
    RUNS,
    optional(z.record(z.string(), z.union([z.number(), z.string()]))),
    'Budgets a device: {"0": "10GiB", "1": "10GiB"}.',
  ),
  planner: option(
    "string",
    "Placement",
    RUNS,
    choice(["pipelora", "accelerate"]).default("pipelora"),
    "accelerate: exactly the map that library would make.",
    "NAME",
  ),
  schedule: option(
    "string",
    "Placement",
    TRAINS,
    choice(["1f1b", "gpipe", "sequential", "interleaved"]).default("1f1b"),
    "Order in which micro-batches run through the stages.",
    "NAME",
  ),
  micro_batch_tokens: option(
    "integer",
    "Placement",
    TRAINS,
    optional(positive),
    "Most tokens of a micro-batch; none: chosen from the batch, whatever the placement.",
  ),
};
