import { z } from "zod";
import { SCHEDULES } from "../../common/schedule-policies.ts";
import { choice, flag, option, optional, positive, RUNS, TRAINS, text } from "./vocabulary.ts";

const mapDevice = z.union([z.number().int(), z.string()]);

export const placementOptions = {
  device_map: option(
    "string",
    "Placement",
    RUNS,
    z.union([z.record(z.string(), z.union([mapDevice, z.array(mapDevice)])), text]).default("auto"),
    "auto, balanced, balanced_low_0, sequential, fastest, or {module: device} as JSON: in place, or a file of it. The head may have a list.",
    "NAME|FILE|JSON",
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
    choice(SCHEDULES).default("auto"),
    "Order in which micro-batches run through the stages; auto: 1f1b, or interleaved where the plan may deal segments out and that is faster.",
    "NAME",
  ),
  replicas: option(
    "integer",
    "Placement",
    TRAINS,
    optional(positive),
    "Copies of the pipeline, each over its share of the devices and with batches of its own, as so many processes of the Trainer; none: 1, or what the fastest plan takes.",
  ),
  micro_batch_tokens: option(
    "integer",
    "Placement",
    TRAINS,
    optional(positive),
    "Most tokens of a micro-batch; none: GPUs take the predicted fastest that fits, CPU workers one that depends on the batch alone.",
  ),
  calibrate: option(
    "string",
    "Placement",
    ["train"],
    choice(["auto", "always", "never"]).default("auto"),
    "Time the workers and their links before planning; auto: for fastest, and for auto over devices that differ.",
    "WHEN",
  ),
  deterministic_batches: option(
    "boolean",
    "Placement",
    TRAINS,
    flag(),
    "Cut steps alike whatever the placement: the same bits on any number of GPUs, and of workers under fastest.",
  ),
};
