// Original file: proto/pipelora/v1/control.proto

import type { Long } from '@grpc/proto-loader';

export interface WriteFile {
  'save'?: (string);
  'name'?: (string);
  'offset'?: (number | string | Long);
  'data'?: (Buffer | Uint8Array | string);
  'adapter'?: (string);
}

export interface WriteFile__Output {
  'save': (string);
  'name': (string);
  'offset': (number);
  'data': (Buffer);
  'adapter': (string);
}
