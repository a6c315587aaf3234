import type * as grpc from '@grpc/grpc-js';
import type { MessageTypeDefinition } from '@grpc/proto-loader';

import type { Frame as _pipelora_v1_Frame, Frame__Output as _pipelora_v1_Frame__Output } from './pipelora/v1/Frame.ts';
import type { Open as _pipelora_v1_Open, Open__Output as _pipelora_v1_Open__Output } from './pipelora/v1/Open.ts';
import type { PullRequest as _pipelora_v1_PullRequest, PullRequest__Output as _pipelora_v1_PullRequest__Output } from './pipelora/v1/PullRequest.ts';
import type { SharedMemory as _pipelora_v1_SharedMemory, SharedMemory__Output as _pipelora_v1_SharedMemory__Output } from './pipelora/v1/SharedMemory.ts';
import type { TensorsClient as _pipelora_v1_TensorsClient, TensorsDefinition as _pipelora_v1_TensorsDefinition } from './pipelora/v1/Tensors.ts';

type SubtypeConstructor<Constructor extends new (...args: any) => any, Subtype> = {
  new(...args: ConstructorParameters<Constructor>): Subtype;
};

export interface ProtoGrpcType {
  pipelora: {
    v1: {
      Frame: MessageTypeDefinition<_pipelora_v1_Frame, _pipelora_v1_Frame__Output>
      Open: MessageTypeDefinition<_pipelora_v1_Open, _pipelora_v1_Open__Output>
      PullRequest: MessageTypeDefinition<_pipelora_v1_PullRequest, _pipelora_v1_PullRequest__Output>
      SharedMemory: MessageTypeDefinition<_pipelora_v1_SharedMemory, _pipelora_v1_SharedMemory__Output>
      Tensors: SubtypeConstructor<typeof grpc.Client, _pipelora_v1_TensorsClient> & { service: _pipelora_v1_TensorsDefinition }
    }
  }
}

