// Original file: proto/pipelora/v1/control.proto

import type { DrawnToken as _pipelora_v1_DrawnToken, DrawnToken__Output as _pipelora_v1_DrawnToken__Output } from '../../pipelora/v1/DrawnToken.ts';

export interface InferResult {
  'tokens'?: (_pipelora_v1_DrawnToken)[];
}

export interface InferResult__Output {
  'tokens': (_pipelora_v1_DrawnToken__Output)[];
}
