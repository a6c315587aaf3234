// Original file: proto/pipelora/v1/tensors.proto

import type { Long } from '@grpc/proto-loader';

export interface Ack {
  'bytes'?: (number | string | Long);
}

export interface Ack__Output {
  'bytes': (number);
}
