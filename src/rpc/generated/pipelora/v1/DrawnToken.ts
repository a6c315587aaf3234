// Original file: proto/pipelora/v1/control.proto

import type { LikelyToken as _pipelora_v1_LikelyToken, LikelyToken__Output as _pipelora_v1_LikelyToken__Output } from '../../pipelora/v1/LikelyToken.ts';
import type { Failure as _pipelora_v1_Failure, Failure__Output as _pipelora_v1_Failure__Output } from '../../pipelora/v1/Failure.ts';

export interface DrawnToken {
  'token'?: (number);
  'logProbability'?: (number | string);
  'likeliest'?: (_pipelora_v1_LikelyToken)[];
  'failure'?: (_pipelora_v1_Failure | null);
}

export interface DrawnToken__Output {
  'token': (number);
  'logProbability': (number);
  'likeliest': (_pipelora_v1_LikelyToken__Output)[];
  'failure': (_pipelora_v1_Failure__Output | null);
}
