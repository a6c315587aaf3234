// Original file: proto/pipelora/v1/control.proto

import type { Losses as _pipelora_v1_Losses, Losses__Output as _pipelora_v1_Losses__Output } from '../../pipelora/v1/Losses.ts';
import type { InputFit as _pipelora_v1_InputFit, InputFit__Output as _pipelora_v1_InputFit__Output } from '../../pipelora/v1/InputFit.ts';

export interface EvaluateResult {
  'losses'?: (_pipelora_v1_Losses | null);
  'fits'?: (_pipelora_v1_InputFit)[];
}

export interface EvaluateResult__Output {
  'losses': (_pipelora_v1_Losses__Output | null);
  'fits': (_pipelora_v1_InputFit__Output)[];
}
