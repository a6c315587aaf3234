// Original file: proto/pipelora/v1/control.proto

import type { Long } from '@grpc/proto-loader';

export interface Generate {
  'prompt'?: (number)[];
  'maxNewTokens'?: (number);
  'doSample'?: (boolean);
  'temperature'?: (number | string);
  'topP'?: (number | string);
  'topK'?: (number);
  'repetitionPenalty'?: (number | string);
  'stopIds'?: (number)[];
  'seed'?: (number | string | Long);
}

export interface Generate__Output {
  'prompt': (number)[];
  'maxNewTokens': (number);
  'doSample': (boolean);
  'temperature': (number);
  'topP': (number);
  'topK': (number);
  'repetitionPenalty': (number);
  'stopIds': (number)[];
  'seed': (number);
}
