// Original file: proto/pipelora/v1/control.proto

import type { Long } from '@grpc/proto-loader';

export interface EvaluateResult {
  'lossSum'?: (number | string);
  'labelTokens'?: (number | string | Long);
  'correctTokens'?: (number | string | Long);
}

export interface EvaluateResult__Output {
  'lossSum': (number);
  'labelTokens': (number);
  'correctTokens': (number);
}
