// Original file: proto/pipelora/v1/control.proto

import type { AdapterSums as _pipelora_v1_AdapterSums, AdapterSums__Output as _pipelora_v1_AdapterSums__Output } from '../../pipelora/v1/AdapterSums.ts';

export interface StepResult {
  'parts'?: (_pipelora_v1_AdapterSums)[];
}

export interface StepResult__Output {
  'parts': (_pipelora_v1_AdapterSums__Output)[];
}
