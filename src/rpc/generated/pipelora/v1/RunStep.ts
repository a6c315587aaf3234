// Original file: proto/pipelora/v1/control.proto

import type { AdapterStep as _pipelora_v1_AdapterStep, AdapterStep__Output as _pipelora_v1_AdapterStep__Output } from '../../pipelora/v1/AdapterStep.ts';
import type { Long } from '@grpc/proto-loader';

export interface RunStep {
  'step'?: (number | string | Long);
  'trace'?: (boolean);
  'parts'?: (_pipelora_v1_AdapterStep)[];
  'tellsState'?: (boolean);
}

export interface RunStep__Output {
  'step': (number);
  'trace': (boolean);
  'parts': (_pipelora_v1_AdapterStep__Output)[];
  'tellsState': (boolean);
}
