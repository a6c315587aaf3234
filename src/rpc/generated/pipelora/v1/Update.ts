// Original file: proto/pipelora/v1/control.proto

import type { UpdateGroup as _pipelora_v1_UpdateGroup, UpdateGroup__Output as _pipelora_v1_UpdateGroup__Output } from '../../pipelora/v1/UpdateGroup.ts';
import type { Long } from '@grpc/proto-loader';

export interface Update {
  'step'?: (number | string | Long);
  'groups'?: (_pipelora_v1_UpdateGroup)[];
  'gradScale'?: (number | string);
  'beta1'?: (number | string);
  'beta2'?: (number | string);
  'epsilon'?: (number | string);
  'skip'?: (boolean);
  'adapter'?: (number);
}

export interface Update__Output {
  'step': (number);
  'groups': (_pipelora_v1_UpdateGroup__Output)[];
  'gradScale': (number);
  'beta1': (number);
  'beta2': (number);
  'epsilon': (number);
  'skip': (boolean);
  'adapter': (number);
}
