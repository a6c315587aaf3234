// Original file: proto/pipelora/v1/control.proto

import type { Failure as _pipelora_v1_Failure, Failure__Output as _pipelora_v1_Failure__Output } from '../../pipelora/v1/Failure.ts';

export interface Shutdown {
  'rejoin'?: (boolean);
  'reason'?: (_pipelora_v1_Failure | null);
}

export interface Shutdown__Output {
  'rejoin': (boolean);
  'reason': (_pipelora_v1_Failure__Output | null);
}
