// Original file: proto/pipelora/v1/control.proto

import type { Long } from '@grpc/proto-loader';

export interface FileHash {
  'name'?: (string);
  'sha256'?: (string);
  'size'?: (number | string | Long);
}

export interface FileHash__Output {
  'name': (string);
  'sha256': (string);
  'size': (number);
}
