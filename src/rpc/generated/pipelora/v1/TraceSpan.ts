// Original file: proto/pipelora/v1/control.proto

import type { Long } from '@grpc/proto-loader';

export interface TraceSpan {
  'kind'?: (string);
  'step'?: (number | string | Long);
  'startMs'?: (number | string);
  'endMs'?: (number | string);
  'segment'?: (number);
  'microBatch'?: (number);
  'peer'?: (number);
  'bytes'?: (number | string | Long);
  '_segment'?: "segment";
  '_microBatch'?: "microBatch";
  '_peer'?: "peer";
  '_bytes'?: "bytes";
}

export interface TraceSpan__Output {
  'kind': (string);
  'step': (number);
  'startMs': (number);
  'endMs': (number);
  'segment'?: (number);
  'microBatch'?: (number);
  'peer'?: (number);
  'bytes'?: (number);
  '_segment'?: "segment";
  '_microBatch'?: "microBatch";
  '_peer'?: "peer";
  '_bytes'?: "bytes";
}
