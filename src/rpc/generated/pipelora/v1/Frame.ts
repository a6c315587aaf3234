// Original file: proto/pipelora/v1/tensors.proto

import type { Long } from '@grpc/proto-loader';

export interface Frame {
  'key'?: (string);
  'shape'?: (number)[];
  'dtype'?: (string);
  'totalBytes'?: (number | string | Long);
  'payload'?: (Buffer | Uint8Array | string);
  'crc32c'?: (number);
  'sequence'?: (number | string | Long);
  'protocol'?: (number);
  'beside'?: (boolean);
}

export interface Frame__Output {
  'key': (string);
  'shape': (number)[];
  'dtype': (string);
  'totalBytes': (number);
  'payload': (Buffer);
  'crc32c': (number);
  'sequence': (number);
  'protocol': (number);
  'beside': (boolean);
}
