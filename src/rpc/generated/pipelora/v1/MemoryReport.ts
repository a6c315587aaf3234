// Original file: proto/pipelora/v1/control.proto

import type { Long } from '@grpc/proto-loader';

export interface MemoryReport {
  'weightBytes'?: (number | string | Long);
  'loraBytes'?: (number | string | Long);
  'cacheBytes'?: (number | string | Long);
  'arenaBytes'?: (number | string | Long);
  'arenaPeakBytes'?: (number | string | Long);
  'processPeakBytes'?: (number | string | Long);
  'allocatedBytes'?: (number | string | Long);
  'deviceBytes'?: (number | string | Long);
  'hostBytes'?: (number | string | Long);
}

export interface MemoryReport__Output {
  'weightBytes': (number);
  'loraBytes': (number);
  'cacheBytes': (number);
  'arenaBytes': (number);
  'arenaPeakBytes': (number);
  'processPeakBytes': (number);
  'allocatedBytes': (number);
  'deviceBytes': (number);
  'hostBytes': (number);
}
