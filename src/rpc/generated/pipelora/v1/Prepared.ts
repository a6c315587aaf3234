// Original file: proto/pipelora/v1/control.proto

import type { MemoryReport as _pipelora_v1_MemoryReport, MemoryReport__Output as _pipelora_v1_MemoryReport__Output } from '../../pipelora/v1/MemoryReport.ts';
import type { Long } from '@grpc/proto-loader';

export interface Prepared {
  'memory'?: (_pipelora_v1_MemoryReport | null);
  'seconds'?: (number | string);
  'takenOver'?: (number);
  'read'?: (number);
  'readBytes'?: (number | string | Long);
}

export interface Prepared__Output {
  'memory': (_pipelora_v1_MemoryReport__Output | null);
  'seconds': (number);
  'takenOver': (number);
  'read': (number);
  'readBytes': (number);
}
