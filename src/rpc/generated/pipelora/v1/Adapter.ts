// Original file: proto/pipelora/v1/control.proto

import type { LoraPair as _pipelora_v1_LoraPair, LoraPair__Output as _pipelora_v1_LoraPair__Output } from '../../pipelora/v1/LoraPair.ts';
import type { TrainedModule as _pipelora_v1_TrainedModule, TrainedModule__Output as _pipelora_v1_TrainedModule__Output } from '../../pipelora/v1/TrainedModule.ts';
import type { NamedMatrix as _pipelora_v1_NamedMatrix, NamedMatrix__Output as _pipelora_v1_NamedMatrix__Output } from '../../pipelora/v1/NamedMatrix.ts';
import type { LoraInit as _pipelora_v1_LoraInit, LoraInit__Output as _pipelora_v1_LoraInit__Output } from '../../pipelora/v1/LoraInit.ts';
import type { Long } from '@grpc/proto-loader';

export interface Adapter {
  'lora'?: (_pipelora_v1_LoraPair)[];
  'trained'?: (_pipelora_v1_TrainedModule)[];
  'matrices'?: (_pipelora_v1_NamedMatrix)[];
  'seed'?: (number | string | Long);
  'loraInit'?: (_pipelora_v1_LoraInit | null);
  'labelSmoothing'?: (number | string);
  'neftuneNoiseAlpha'?: (number | string);
}

export interface Adapter__Output {
  'lora': (_pipelora_v1_LoraPair__Output)[];
  'trained': (_pipelora_v1_TrainedModule__Output)[];
  'matrices': (_pipelora_v1_NamedMatrix__Output)[];
  'seed': (number);
  'loraInit': (_pipelora_v1_LoraInit__Output | null);
  'labelSmoothing': (number);
  'neftuneNoiseAlpha': (number);
}
