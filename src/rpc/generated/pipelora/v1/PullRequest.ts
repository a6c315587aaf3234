// Original file: proto/pipelora/v1/tensors.proto

import type { Open as _pipelora_v1_Open, Open__Output as _pipelora_v1_Open__Output } from '../../pipelora/v1/Open.ts';
import type { Long } from '@grpc/proto-loader';

export interface PullRequest {
  'open'?: (_pipelora_v1_Open | null);
  'received'?: (number | string | Long);
  'grantedBytes'?: (number | string | Long);
  'resend'?: (boolean);
}

export interface PullRequest__Output {
  'open': (_pipelora_v1_Open__Output | null);
  'received': (number);
  'grantedBytes': (number);
  'resend': (boolean);
}
