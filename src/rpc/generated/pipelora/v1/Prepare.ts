// Original file: proto/pipelora/v1/control.proto

import type { Segment as _pipelora_v1_Segment, Segment__Output as _pipelora_v1_Segment__Output } from '../../pipelora/v1/Segment.ts';
import type { LoraPair as _pipelora_v1_LoraPair, LoraPair__Output as _pipelora_v1_LoraPair__Output } from '../../pipelora/v1/LoraPair.ts';
import type { Quantization as _pipelora_v1_Quantization, Quantization__Output as _pipelora_v1_Quantization__Output } from '../../pipelora/v1/Quantization.ts';
import type { Peer as _pipelora_v1_Peer, Peer__Output as _pipelora_v1_Peer__Output } from '../../pipelora/v1/Peer.ts';
import type { LoraInit as _pipelora_v1_LoraInit, LoraInit__Output as _pipelora_v1_LoraInit__Output } from '../../pipelora/v1/LoraInit.ts';
import type { HubModel as _pipelora_v1_HubModel, HubModel__Output as _pipelora_v1_HubModel__Output } from '../../pipelora/v1/HubModel.ts';
import type { NamedMatrix as _pipelora_v1_NamedMatrix, NamedMatrix__Output as _pipelora_v1_NamedMatrix__Output } from '../../pipelora/v1/NamedMatrix.ts';
import type { TrainedModule as _pipelora_v1_TrainedModule, TrainedModule__Output as _pipelora_v1_TrainedModule__Output } from '../../pipelora/v1/TrainedModule.ts';
import type { Long } from '@grpc/proto-loader';

export interface Prepare {
  'modelDir'?: (string);
  'modelFingerprint'?: (string);
  'holdDtype'?: (string);
  'computeDtype'?: (string);
  'threads'?: (number);
  'arenaBytes'?: (number | string | Long);
  'segments'?: (_pipelora_v1_Segment)[];
  'lora'?: (_pipelora_v1_LoraPair)[];
  'quantization'?: (_pipelora_v1_Quantization | null);
  'peers'?: (_pipelora_v1_Peer)[];
  'schedule'?: (string);
  'seed'?: (number | string | Long);
  'loraInit'?: (_pipelora_v1_LoraInit | null);
  'linkTimeoutS'?: (number | string);
  'replicaRanks'?: (number)[];
  'replicaNccl'?: (Buffer | Uint8Array | string);
  'hostBytes'?: (number | string | Long);
  'pipelineRanks'?: (number)[];
  'hubModel'?: (_pipelora_v1_HubModel | null);
  'labelSmoothing'?: (number | string);
  'neftuneNoiseAlpha'?: (number | string);
  'fp8'?: (boolean);
  'matrices'?: (_pipelora_v1_NamedMatrix)[];
  'trained'?: (_pipelora_v1_TrainedModule)[];
}

export interface Prepare__Output {
  'modelDir': (string);
  'modelFingerprint': (string);
  'holdDtype': (string);
  'computeDtype': (string);
  'threads': (number);
  'arenaBytes': (number);
  'segments': (_pipelora_v1_Segment__Output)[];
  'lora': (_pipelora_v1_LoraPair__Output)[];
  'quantization': (_pipelora_v1_Quantization__Output | null);
  'peers': (_pipelora_v1_Peer__Output)[];
  'schedule': (string);
  'seed': (number);
  'loraInit': (_pipelora_v1_LoraInit__Output | null);
  'linkTimeoutS': (number);
  'replicaRanks': (number)[];
  'replicaNccl': (Buffer);
  'hostBytes': (number);
  'pipelineRanks': (number)[];
  'hubModel': (_pipelora_v1_HubModel__Output | null);
  'labelSmoothing': (number);
  'neftuneNoiseAlpha': (number);
  'fp8': (boolean);
  'matrices': (_pipelora_v1_NamedMatrix__Output)[];
  'trained': (_pipelora_v1_TrainedModule__Output)[];
}
