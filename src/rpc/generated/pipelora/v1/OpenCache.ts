// Original file: proto/pipelora/v1/control.proto

import type { Long } from '@grpc/proto-loader';

export interface OpenCache {
  'sequences'?: (number);
  'rows'?: (number | string | Long);
}

export interface OpenCache__Output {
  'sequences': (number);
  'rows': (number);
}
