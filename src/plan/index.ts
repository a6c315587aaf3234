export type { WorkChoice } from "./choose.ts";
export { fastestPlan } from "./choose.ts";
export { expandDeviceMap, hfDeviceMap } from "./device-map.ts";
export type { Budgets, Device, DeviceKey, DeviceMap, MaxMemory } from "./devices.ts";
export { budgetsOf, devicesFromMaxMemory } from "./devices.ts";
export { assertComputable } from "./engine-limits.ts";
export { linkBytesPerToken } from "./link-bytes.ts";
export { parseMaxMemory, parseSize } from "./max-memory.ts";
export { suitsE4m3 } from "./memory/gpu-products.ts";
export type { Holding, Quantization } from "./memory/held-sizes.ts";
export { isQuantized, layerWeightBytes, linearWeightBytes } from "./memory/held-sizes.ts";
export type { DeviceMemory } from "./memory.ts";
export { predictMemory } from "./memory.ts";
export { countsNear, countsToTry, MOST_TOKENS, microBatchCount, stepsUpTo } from "./micro-batches.ts";
export type { Plan, PlannedDevice, PlannedSegment, PlanPrediction } from "./plan.ts";
export { assertRunnable, makePlan } from "./plan.ts";
export { attemptReplicatedPlan } from "./replicas.ts";
export type {
  Checkpointing,
  DeviceMapInput,
  LinkRate,
  MeasuredDevice,
  NamedStrategy,
  PlanRequest,
  RateOverrides,
  WeightCache,
  Work,
} from "./request.ts";
export { linkKey, NO_OVERRIDES, STRATEGIES } from "./request.ts";
export type { Segment } from "./segments.ts";
export { segmentsOf } from "./segments.ts";
export { formatPlan, planJson } from "./shown/format-plan.ts";
export { linkRate } from "./time/rates.ts";
export { predictTime } from "./time.ts";
