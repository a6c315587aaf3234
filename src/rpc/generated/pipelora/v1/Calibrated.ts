// Original file: proto/pipelora/v1/control.proto

import type { LayerTime as _pipelora_v1_LayerTime, LayerTime__Output as _pipelora_v1_LayerTime__Output } from '../../pipelora/v1/LayerTime.ts';

export interface Calibrated {
  'block'?: (_pipelora_v1_LayerTime)[];
  'head'?: (_pipelora_v1_LayerTime)[];
  'update'?: (number | string);
  'cores'?: (number)[];
  'updateProcessor'?: (number | string);
}

export interface Calibrated__Output {
  'block': (_pipelora_v1_LayerTime__Output)[];
  'head': (_pipelora_v1_LayerTime__Output)[];
  'update': (number);
  'cores': (number)[];
  'updateProcessor': (number);
}
