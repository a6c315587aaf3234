// Original file: proto/pipelora/v1/control.proto

import type { GradSquare as _pipelora_v1_GradSquare, GradSquare__Output as _pipelora_v1_GradSquare__Output } from '../../pipelora/v1/GradSquare.ts';
import type { StepTimes as _pipelora_v1_StepTimes, StepTimes__Output as _pipelora_v1_StepTimes__Output } from '../../pipelora/v1/StepTimes.ts';
import type { MemoryReport as _pipelora_v1_MemoryReport, MemoryReport__Output as _pipelora_v1_MemoryReport__Output } from '../../pipelora/v1/MemoryReport.ts';
import type { Long } from '@grpc/proto-loader';

export interface StepResult {
  'lossSum'?: (number | string);
  'labelTokens'?: (number | string | Long);
  'correctTokens'?: (number | string | Long);
  'gradSquares'?: (_pipelora_v1_GradSquare)[];
  'times'?: (_pipelora_v1_StepTimes | null);
  'memory'?: (_pipelora_v1_MemoryReport | null);
}

export interface StepResult__Output {
  'lossSum': (number);
  'labelTokens': (number);
  'correctTokens': (number);
  'gradSquares': (_pipelora_v1_GradSquare__Output)[];
  'times': (_pipelora_v1_StepTimes__Output | null);
  'memory': (_pipelora_v1_MemoryReport__Output | null);
}
