// Original file: proto/pipelora/v1/control.proto

import type { Prepare as _pipelora_v1_Prepare, Prepare__Output as _pipelora_v1_Prepare__Output } from '../../pipelora/v1/Prepare.ts';

export interface Calibrate {
  'prepare'?: (_pipelora_v1_Prepare | null);
  'tokens'?: (number)[];
  'labelTokens'?: (number)[];
  'rowTokens'?: (number);
  'hidden'?: (number);
}

export interface Calibrate__Output {
  'prepare': (_pipelora_v1_Prepare__Output | null);
  'tokens': (number)[];
  'labelTokens': (number)[];
  'rowTokens': (number);
  'hidden': (number);
}
