// Original file: proto/pipelora/v1/control.proto

import type { Failure as _pipelora_v1_Failure, Failure__Output as _pipelora_v1_Failure__Output } from '../../pipelora/v1/Failure.ts';
import type { Long } from '@grpc/proto-loader';

export interface Losses {
  'sums'?: (Buffer | Uint8Array | string);
  'labelTokens'?: (number | string | Long);
  'correctTokens'?: (number | string | Long);
  'failure'?: (_pipelora_v1_Failure | null);
  'failedMicroBatch'?: (number);
}

export interface Losses__Output {
  'sums': (Buffer);
  'labelTokens': (number);
  'correctTokens': (number);
  'failure': (_pipelora_v1_Failure__Output | null);
  'failedMicroBatch': (number);
}
