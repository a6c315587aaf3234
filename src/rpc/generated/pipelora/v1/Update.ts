// Original file: proto/pipelora/v1/control.proto

import type { Long } from '@grpc/proto-loader';

export interface Update {
  'step'?: (number | string | Long);
  'learningRate'?: (number | string);
  'gradScale'?: (number | string);
  'beta1'?: (number | string);
  'beta2'?: (number | string);
  'epsilon'?: (number | string);
  'weightDecay'?: (number | string);
  'skip'?: (boolean);
}

export interface Update__Output {
  'step': (number);
  'learningRate': (number);
  'gradScale': (number);
  'beta1': (number);
  'beta2': (number);
  'epsilon': (number);
  'weightDecay': (number);
  'skip': (boolean);
}
