// Original file: proto/pipelora/v1/control.proto

import type { Draw as _pipelora_v1_Draw, Draw__Output as _pipelora_v1_Draw__Output } from '../../pipelora/v1/Draw.ts';
import type { Long } from '@grpc/proto-loader';

export interface Infer {
  'round'?: (number | string | Long);
  'counts'?: (Buffer | Uint8Array | string);
  'slots'?: (Buffer | Uint8Array | string);
  'starts'?: (Buffer | Uint8Array | string);
  'past'?: (Buffer | Uint8Array | string);
  'lengths'?: (Buffer | Uint8Array | string);
  'tokens'?: (Buffer | Uint8Array | string);
  'draws'?: (_pipelora_v1_Draw)[];
  'adapter'?: (number);
}

export interface Infer__Output {
  'round': (number);
  'counts': (Buffer);
  'slots': (Buffer);
  'starts': (Buffer);
  'past': (Buffer);
  'lengths': (Buffer);
  'tokens': (Buffer);
  'draws': (_pipelora_v1_Draw__Output)[];
  'adapter': (number);
}
