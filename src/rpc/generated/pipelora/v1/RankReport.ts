// Original file: proto/pipelora/v1/control.proto

import type { MemoryReport as _pipelora_v1_MemoryReport, MemoryReport__Output as _pipelora_v1_MemoryReport__Output } from '../../pipelora/v1/MemoryReport.ts';
import type { StepTimes as _pipelora_v1_StepTimes, StepTimes__Output as _pipelora_v1_StepTimes__Output } from '../../pipelora/v1/StepTimes.ts';
import type { TraceSpan as _pipelora_v1_TraceSpan, TraceSpan__Output as _pipelora_v1_TraceSpan__Output } from '../../pipelora/v1/TraceSpan.ts';
import type { Long } from '@grpc/proto-loader';

export interface RankReport {
  'memory'?: (_pipelora_v1_MemoryReport | null);
  'steps'?: (number | string | Long);
  'times'?: (_pipelora_v1_StepTimes | null);
  'spans'?: (_pipelora_v1_TraceSpan)[];
}

export interface RankReport__Output {
  'memory': (_pipelora_v1_MemoryReport__Output | null);
  'steps': (number);
  'times': (_pipelora_v1_StepTimes__Output | null);
  'spans': (_pipelora_v1_TraceSpan__Output)[];
}
