// Original file: proto/pipelora/v1/control.proto

import type { MatrixTensor as _pipelora_v1_MatrixTensor, MatrixTensor__Output as _pipelora_v1_MatrixTensor__Output } from '../../pipelora/v1/MatrixTensor.ts';
import type { Long } from '@grpc/proto-loader';

export interface BoundaryState {
  'round'?: (number | string | Long);
  'adapter'?: (number);
  'tensors'?: (_pipelora_v1_MatrixTensor)[];
}

export interface BoundaryState__Output {
  'round': (number);
  'adapter': (number);
  'tensors': (_pipelora_v1_MatrixTensor__Output)[];
}
