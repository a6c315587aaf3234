// Original file: proto/pipelora/v1/control.proto

import type { MicroBatches as _pipelora_v1_MicroBatches, MicroBatches__Output as _pipelora_v1_MicroBatches__Output } from '../../pipelora/v1/MicroBatches.ts';
import type { InputStudy as _pipelora_v1_InputStudy, InputStudy__Output as _pipelora_v1_InputStudy__Output } from '../../pipelora/v1/InputStudy.ts';

export interface Evaluate {
  'microBatches'?: (_pipelora_v1_MicroBatches | null);
  'adapter'?: (number);
  'study'?: (_pipelora_v1_InputStudy | null);
}

export interface Evaluate__Output {
  'microBatches': (_pipelora_v1_MicroBatches__Output | null);
  'adapter': (number);
  'study': (_pipelora_v1_InputStudy__Output | null);
}
