// Original file: proto/pipelora/v1/control.proto

import type { Long } from '@grpc/proto-loader';

export interface StepResult {
  'lossSum'?: (number | string);
  'labelTokens'?: (number | string | Long);
  'correctTokens'?: (number | string | Long);
  'matrixIds'?: (Buffer | Uint8Array | string);
  'gradSquares'?: (Buffer | Uint8Array | string);
}

export interface StepResult__Output {
  'lossSum': (number);
  'labelTokens': (number);
  'correctTokens': (number);
  'matrixIds': (Buffer);
  'gradSquares': (Buffer);
}
