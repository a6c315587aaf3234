import { PipeloraError, toPipeloraError } from "../../common/errors.ts";
import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import { Scheduler } from "../../generation/scheduler.ts";
import { formatPlan } from "../../plan/shown/format-plan.ts";
import { adapterValues } from "../assembly/adapter-values.ts";
import type { CalibrationSettings } from "../assembly/calibration.ts";
import { loadShards } from "../assembly/load-shards.ts";
import { type PlannedMembers, planMembers } from "../assembly/plan-members.ts";
import type { Cluster } from "../cluster/cluster.ts";
import { type ClusterSettings, openCluster } from "../cluster/open-cluster.ts";
import type { MatrixValues, Pipeline } from "../cluster/pipeline.ts";
import { RESTARTABLE } from "../cluster/restartable.ts";
import type { ModelSetup } from "../planning/model-setup.ts";
import type { PlanSettings } from "../planning/planning.ts";
import { type CacheNeeds, generationWorkload } from "../planning/workload.ts";
import type { AdapterSet } from "./adapter-set.ts";

export type ScheduledSettings = ClusterSettings &
  PlanSettings &
  CalibrationSettings &
  Pick<Config, "max_restarts" | "max_num_batched_tokens">;

/** What is to be continued at a time. */
export interface WantedRoom {
  readonly sequences: number;
  /** Tokens of all sequences together: a number, or as many as fit between two bounds. */
  readonly rows: number | { readonly most: number; readonly least: number };
  /** Sequences that may wait for a place. */
  readonly waiting: number;
}

/** Tokens a sequence for which the cache has room, unless a flag says otherwise. */
const USUAL_TOKENS = 4096;
/** With room for fewer tokens than this, of all sequences together, generation does not start. */
const FEWEST_ROWS = 512;

/**
 * Sequences for which the cache has room at the usual length, or at the model's greatest length where that is less: the number wanted, and
 * the least number.
 */
export function usualRows(sequences: number, { spec }: ModelSetup): { most: number; least: number } {
  const each = Math.min(USUAL_TOKENS, spec.maxPositions);
  return { most: sequences * each, least: Math.min(FEWEST_ROWS, each) };
}

/** After this time without a lost worker, losses are counted from 0 again. */
const RENEWAL_MS = 60_000;

export interface ModelToSchedule {
  readonly setup: ModelSetup;
  readonly room: WantedRoom;
  /** Adapters over the base, numbered from 1; null or absent: the setup's own adapter, or none. */
  readonly adapters?: AdapterSet | null;
}

interface Placed {
  readonly pipeline: Pipeline;
  readonly stages: number;
  readonly rows: number;
}

/**
 * Loads the model over the workers and calls `use` with a scheduler over them. When a worker is lost, the model is loaded again, at most
 * max_restarts times, and sequences under way go on. Errors: those of planning and loading, and the last loss.
 */
export async function withScheduler<T>(
  config: ScheduledSettings,
  log: Logger,
  { setup, room, adapters = null }: ModelToSchedule,
  use: (scheduler: Scheduler) => Promise<T>,
): Promise<T> {
  const values = await adapterValues(setup);
  const cluster = await openCluster(config, log);
  const model = new ScheduledModel(config, log, { cluster, setup, values, adapters });
  try {
    const first = await model.place(room);
    const scheduler = new Scheduler({
      sequences: room.sequences,
      rows: first.rows,
      positions: setup.spec.maxPositions,
      roundTokens: config.max_num_batched_tokens,
      rounds: first.stages,
      waiting: room.waiting,
    });
    const kept = model.keepAttached(scheduler, first, { ...room, rows: first.rows });
    try {
      return await Promise.race([use(scheduler), kept]);
    } finally {
      model.end(scheduler);
      await kept.catch(() => {});
    }
  } finally {
    await cluster.close(false);
  }
}

interface Loaded {
  readonly cluster: Cluster;
  readonly setup: ModelSetup;
  readonly values: readonly MatrixValues[] | null;
  readonly adapters: AdapterSet | null;
}

class ScheduledModel {
  readonly #config: ScheduledSettings;
  readonly #log: Logger;
  readonly #loaded: Loaded;
  #ending = false;

  constructor(config: ScheduledSettings, log: Logger, loaded: Loaded) {
    this.#config = config;
    this.#log = log;
    this.#loaded = loaded;
  }

  /** Gathers workers, plans, loads, and makes the cache. */
  async place(room: WantedRoom): Promise<Placed> {
    const { cluster, setup, values, adapters } = this.#loaded;
    const { planned, rows } = await this.#plan(room);
    const names = setup.spec.layers.map(({ name }) => name);
    this.#log.debug(formatPlan(planned.plan, names, planned.links));
    for (const warning of planned.plan.warnings) this.#log.warn(warning);
    const adapter = { lora: setup.lora, settings: { ...this.#config, init_lora_weights: true }, initialise: false };
    const how = { adapters: [adapter], failure: cluster.failure };
    const { pipeline } = await loadShards(planned, setup, this.#config, how);
    if (values !== null) await pipeline.adapter(0).importMatrices(values);
    for (let index = 0; index < (adapters?.names.length ?? 0); index++) {
      await pipeline.shelve(await adapters!.values(index), index + 1);
    }
    await pipeline.openCache(room.sequences, rows);
    cluster.health.ready = true;
    return { pipeline, rows, stages: new Set(planned.plan.segments.flatMap(({ ranks }) => ranks)).size };
  }

  /** Rejects when no placement is left to try. Never resolves before end(). */
  async keepAttached(scheduler: Scheduler, first: Placed, room: WantedRoom): Promise<never> {
    const { cluster } = this.#loaded;
    let left = this.#config.max_restarts;
    try {
      for (let placed = first; ; placed = await this.place(room)) {
        const since = performance.now();
        const lost = await attachedUntilLost(scheduler, placed.pipeline, cluster.failure);
        if (this.#ending) throw new PipeloraError("PL_INTERRUPTED", "the work is done");
        if (performance.now() - since > RENEWAL_MS) left = this.#config.max_restarts;
        if (!RESTARTABLE.has(lost.code) || left === 0) throw lost;
        left--;
        this.#log.warn(`${lost.message}; loading the model anew, what was under way goes on`);
        await cluster.dissolve();
      }
    } catch (error) {
      scheduler.fail(error);
      throw error;
    }
  }

  /** Nothing more is to be continued. */
  end(scheduler: Scheduler): void {
    this.#ending = true;
    scheduler.detach();
  }

  async #plan(room: WantedRoom): Promise<{ planned: PlannedMembers; rows: number }> {
    const { cluster, setup } = this.#loaded;
    const members = await cluster.form();
    const needs = (rows: number): CacheNeeds => ({
      sequences: room.sequences,
      rows,
      roundTokens: Math.min(rows, this.#config.max_num_batched_tokens + room.sequences),
    });
    const planWith = (rows: number) =>
      planMembers(members, setup, { workload: generationWorkload(needs(rows)) }, this.#config);
    const { most, least } = typeof room.rows === "number" ? { most: room.rows, least: room.rows } : room.rows;
    for (let rows = most; ; rows = Math.max(least, Math.ceil(rows / 2))) {
      try {
        return { planned: await planWith(rows), rows };
      } catch (error) {
        if (toPipeloraError(error).code !== "PL_PLACEMENT_INFEASIBLE" || rows <= least) throw error;
      }
    }
  }
}

/** Resolves with the reason when the pipeline is no longer usable, or with PL_INTERRUPTED once the scheduler is detached. */
async function attachedUntilLost(
  scheduler: Scheduler,
  pipeline: Pipeline,
  failure: Promise<never>,
): Promise<PipeloraError> {
  try {
    await Promise.race([scheduler.attach(pipeline), failure]);
    return new PipeloraError("PL_INTERRUPTED", "the scheduler was detached");
  } catch (error) {
    scheduler.detach();
    return toPipeloraError(error);
  }
}
