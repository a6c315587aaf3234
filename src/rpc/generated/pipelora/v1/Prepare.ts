// Original file: proto/pipelora/v1/control.proto

import type { Segment as _pipelora_v1_Segment, Segment__Output as _pipelora_v1_Segment__Output } from '../../pipelora/v1/Segment.ts';
import type { Quantization as _pipelora_v1_Quantization, Quantization__Output as _pipelora_v1_Quantization__Output } from '../../pipelora/v1/Quantization.ts';
import type { Peer as _pipelora_v1_Peer, Peer__Output as _pipelora_v1_Peer__Output } from '../../pipelora/v1/Peer.ts';
import type { HubModel as _pipelora_v1_HubModel, HubModel__Output as _pipelora_v1_HubModel__Output } from '../../pipelora/v1/HubModel.ts';
import type { Adapter as _pipelora_v1_Adapter, Adapter__Output as _pipelora_v1_Adapter__Output } from '../../pipelora/v1/Adapter.ts';
import type { Long } from '@grpc/proto-loader';

export interface Prepare {
  'modelDir'?: (string);
  'modelFingerprint'?: (string);
  'holdDtype'?: (string);
  'computeDtype'?: (string);
  'threads'?: (number);
  'arenaBytes'?: (number | string | Long);
  'segments'?: (_pipelora_v1_Segment)[];
  'quantization'?: (_pipelora_v1_Quantization | null);
  'peers'?: (_pipelora_v1_Peer)[];
  'schedule'?: (string);
  'linkTimeoutS'?: (number | string);
  'replicaRanks'?: (number)[];
  'replicaNccl'?: (Buffer | Uint8Array | string);
  'hostBytes'?: (number | string | Long);
  'pipelineRanks'?: (number)[];
  'hubModel'?: (_pipelora_v1_HubModel | null);
  'fp8'?: (boolean);
  'linkDtype'?: (string);
  'adapters'?: (_pipelora_v1_Adapter)[];
}

export interface Prepare__Output {
  'modelDir': (string);
  'modelFingerprint': (string);
  'holdDtype': (string);
  'computeDtype': (string);
  'threads': (number);
  'arenaBytes': (number);
  'segments': (_pipelora_v1_Segment__Output)[];
  'quantization': (_pipelora_v1_Quantization__Output | null);
  'peers': (_pipelora_v1_Peer__Output)[];
  'schedule': (string);
  'linkTimeoutS': (number);
  'replicaRanks': (number)[];
  'replicaNccl': (Buffer);
  'hostBytes': (number);
  'pipelineRanks': (number)[];
  'hubModel': (_pipelora_v1_HubModel__Output | null);
  'fp8': (boolean);
  'linkDtype': (string);
  'adapters': (_pipelora_v1_Adapter__Output)[];
}
