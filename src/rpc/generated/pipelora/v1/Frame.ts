// Original file: proto/pipelora/v1/tensors.proto

import type { Long } from '@grpc/proto-loader';

export interface Frame {
  'session'?: (string);
  'fromRank'?: (number);
  'key'?: (string);
  'shape'?: (number)[];
  'dtype'?: (string);
  'totalBytes'?: (number | string | Long);
  'payload'?: (Buffer | Uint8Array | string);
}

export interface Frame__Output {
  'session': (string);
  'fromRank': (number);
  'key': (string);
  'shape': (number)[];
  'dtype': (string);
  'totalBytes': (number);
  'payload': (Buffer);
}
