import type * as grpc from '@grpc/grpc-js';
import type { MessageTypeDefinition } from '@grpc/proto-loader';

import type { Ack as _pipelora_v1_Ack, Ack__Output as _pipelora_v1_Ack__Output } from './pipelora/v1/Ack.ts';
import type { Frame as _pipelora_v1_Frame, Frame__Output as _pipelora_v1_Frame__Output } from './pipelora/v1/Frame.ts';
import type { TensorsClient as _pipelora_v1_TensorsClient, TensorsDefinition as _pipelora_v1_TensorsDefinition } from './pipelora/v1/Tensors.ts';

type SubtypeConstructor<Constructor extends new (...args: any) => any, Subtype> = {
  new(...args: ConstructorParameters<Constructor>): Subtype;
};

export interface ProtoGrpcType {
  pipelora: {
    v1: {
      Ack: MessageTypeDefinition<_pipelora_v1_Ack, _pipelora_v1_Ack__Output>
      Frame: MessageTypeDefinition<_pipelora_v1_Frame, _pipelora_v1_Frame__Output>
      Tensors: SubtypeConstructor<typeof grpc.Client, _pipelora_v1_TensorsClient> & { service: _pipelora_v1_TensorsDefinition }
    }
  }
}

