// Original file: proto/pipelora/v1/control.proto

import type { Long } from '@grpc/proto-loader';

export interface StepTimes {
  'totalMs'?: (number | string);
  'computeMs'?: (number | string);
  'waitMs'?: (number | string);
  'sentBytes'?: (number | string | Long);
  'reduceMs'?: (number | string);
  'linkMs'?: (number | string);
  'processorMs'?: (number | string);
}

export interface StepTimes__Output {
  'totalMs': (number);
  'computeMs': (number);
  'waitMs': (number);
  'sentBytes': (number);
  'reduceMs': (number);
  'linkMs': (number);
  'processorMs': (number);
}
