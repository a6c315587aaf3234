// Original file: proto/pipelora/v1/control.proto

import type { FileHash as _pipelora_v1_FileHash, FileHash__Output as _pipelora_v1_FileHash__Output } from '../../pipelora/v1/FileHash.ts';
import type { Long } from '@grpc/proto-loader';

export interface CheckpointFiles {
  'step'?: (number | string | Long);
  'files'?: (_pipelora_v1_FileHash)[];
}

export interface CheckpointFiles__Output {
  'step': (number);
  'files': (_pipelora_v1_FileHash__Output)[];
}
