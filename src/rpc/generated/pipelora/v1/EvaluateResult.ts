// Original file: proto/pipelora/v1/control.proto

import type { Failure as _pipelora_v1_Failure, Failure__Output as _pipelora_v1_Failure__Output } from '../../pipelora/v1/Failure.ts';
import type { InputFit as _pipelora_v1_InputFit, InputFit__Output as _pipelora_v1_InputFit__Output } from '../../pipelora/v1/InputFit.ts';
import type { Long } from '@grpc/proto-loader';

export interface EvaluateResult {
  'lossSum'?: (number | string);
  'labelTokens'?: (number | string | Long);
  'correctTokens'?: (number | string | Long);
  'failure'?: (_pipelora_v1_Failure | null);
  'fits'?: (_pipelora_v1_InputFit)[];
}

export interface EvaluateResult__Output {
  'lossSum': (number);
  'labelTokens': (number);
  'correctTokens': (number);
  'failure': (_pipelora_v1_Failure__Output | null);
  'fits': (_pipelora_v1_InputFit__Output)[];
}
