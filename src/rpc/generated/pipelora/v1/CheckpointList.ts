// Original file: proto/pipelora/v1/control.proto

import type { CheckpointFiles as _pipelora_v1_CheckpointFiles, CheckpointFiles__Output as _pipelora_v1_CheckpointFiles__Output } from '../../pipelora/v1/CheckpointFiles.ts';

export interface CheckpointList {
  'checkpoints'?: (_pipelora_v1_CheckpointFiles)[];
}

export interface CheckpointList__Output {
  'checkpoints': (_pipelora_v1_CheckpointFiles__Output)[];
}
