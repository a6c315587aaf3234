// Original file: proto/pipelora/v1/control.proto

import type { StudiedInput as _pipelora_v1_StudiedInput, StudiedInput__Output as _pipelora_v1_StudiedInput__Output } from '../../pipelora/v1/StudiedInput.ts';

export interface InputStudy {
  'inputs'?: (_pipelora_v1_StudiedInput)[];
  'counted'?: (Buffer | Uint8Array | string);
}

export interface InputStudy__Output {
  'inputs': (_pipelora_v1_StudiedInput__Output)[];
  'counted': (Buffer);
}
