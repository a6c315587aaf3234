export { buildSchedule } from "./build-schedule.ts";
export { mostHeld } from "./held.ts";
export type { Instruction, InstructionKind, ScheduledSegment, ScheduleRequest } from "./instruction.ts";
export { rankOf, turnsOf } from "./instruction.ts";
export type {
  Deadlock,
  LinkModel,
  OperationTimes,
  SharedCores,
  SimulatedRank,
  SimulatedStep,
  SimulationResult,
} from "./simulate.ts";
export { IDEAL_LINKS, simulate, simulateStep } from "./simulate.ts";
