// Original file: proto/pipelora/v1/control.proto

import type { Long } from '@grpc/proto-loader';

export interface ReadFile {
  'save'?: (string);
  'name'?: (string);
  'offset'?: (number | string | Long);
  'bytes'?: (number);
  'adapter'?: (string);
}

export interface ReadFile__Output {
  'save': (string);
  'name': (string);
  'offset': (number);
  'bytes': (number);
  'adapter': (string);
}
