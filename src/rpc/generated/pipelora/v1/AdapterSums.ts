// Original file: proto/pipelora/v1/control.proto

import type { Losses as _pipelora_v1_Losses, Losses__Output as _pipelora_v1_Losses__Output } from '../../pipelora/v1/Losses.ts';

export interface AdapterSums {
  'matrixIds'?: (Buffer | Uint8Array | string);
  'gradSquares'?: (Buffer | Uint8Array | string);
  'losses'?: (_pipelora_v1_Losses | null);
}

export interface AdapterSums__Output {
  'matrixIds': (Buffer);
  'gradSquares': (Buffer);
  'losses': (_pipelora_v1_Losses__Output | null);
}
