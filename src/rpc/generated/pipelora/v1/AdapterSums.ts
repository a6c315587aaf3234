// Original file: proto/pipelora/v1/control.proto

import type { Failure as _pipelora_v1_Failure, Failure__Output as _pipelora_v1_Failure__Output } from '../../pipelora/v1/Failure.ts';
import type { Long } from '@grpc/proto-loader';

export interface AdapterSums {
  'lossSum'?: (number | string);
  'labelTokens'?: (number | string | Long);
  'correctTokens'?: (number | string | Long);
  'matrixIds'?: (Buffer | Uint8Array | string);
  'gradSquares'?: (Buffer | Uint8Array | string);
  'failure'?: (_pipelora_v1_Failure | null);
}

export interface AdapterSums__Output {
  'lossSum': (number);
  'labelTokens': (number);
  'correctTokens': (number);
  'matrixIds': (Buffer);
  'gradSquares': (Buffer);
  'failure': (_pipelora_v1_Failure__Output | null);
}
