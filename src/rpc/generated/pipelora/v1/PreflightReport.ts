// Original file: proto/pipelora/v1/control.proto

import type { Failure as _pipelora_v1_Failure, Failure__Output as _pipelora_v1_Failure__Output } from '../../pipelora/v1/Failure.ts';
import type { Long } from '@grpc/proto-loader';

export interface PreflightReport {
  'clockMs'?: (number | string);
  'freeMemoryBytes'?: (number | string | Long);
  'freeDiskBytes'?: (number | string | Long);
  'checkpoint'?: (string);
  'checkpointFailure'?: (_pipelora_v1_Failure | null);
  'nccl'?: (string);
}

export interface PreflightReport__Output {
  'clockMs': (number);
  'freeMemoryBytes': (number);
  'freeDiskBytes': (number);
  'checkpoint': (string);
  'checkpointFailure': (_pipelora_v1_Failure__Output | null);
  'nccl': (string);
}
