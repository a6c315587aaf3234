// Original file: proto/pipelora/v1/control.proto

import type { MicroBatch as _pipelora_v1_MicroBatch, MicroBatch__Output as _pipelora_v1_MicroBatch__Output } from '../../pipelora/v1/MicroBatch.ts';

export interface Evaluate {
  'microBatches'?: (_pipelora_v1_MicroBatch)[];
}

export interface Evaluate__Output {
  'microBatches': (_pipelora_v1_MicroBatch__Output)[];
}
