// Original file: proto/pipelora/v1/control.proto

import type { MicroBatches as _pipelora_v1_MicroBatches, MicroBatches__Output as _pipelora_v1_MicroBatches__Output } from '../../pipelora/v1/MicroBatches.ts';
import type { Update as _pipelora_v1_Update, Update__Output as _pipelora_v1_Update__Output } from '../../pipelora/v1/Update.ts';
import type { Long } from '@grpc/proto-loader';

export interface AdapterStep {
  'adapter'?: (number);
  'step'?: (number | string | Long);
  'microBatches'?: (_pipelora_v1_MicroBatches | null);
  'previous'?: (_pipelora_v1_Update | null);
  'lossScale'?: (number | string);
}

export interface AdapterStep__Output {
  'adapter': (number);
  'step': (number);
  'microBatches': (_pipelora_v1_MicroBatches__Output | null);
  'previous': (_pipelora_v1_Update__Output | null);
  'lossScale': (number);
}
