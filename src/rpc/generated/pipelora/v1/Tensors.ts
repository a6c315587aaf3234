// Original file: proto/pipelora/v1/tensors.proto

import type * as grpc from '@grpc/grpc-js'
import type { MethodDefinition } from '@grpc/proto-loader'
import type { Ack as _pipelora_v1_Ack, Ack__Output as _pipelora_v1_Ack__Output } from '../../pipelora/v1/Ack.ts';
import type { Frame as _pipelora_v1_Frame, Frame__Output as _pipelora_v1_Frame__Output } from '../../pipelora/v1/Frame.ts';

export interface TensorsClient extends grpc.Client {
  Push(metadata: grpc.Metadata, options?: grpc.CallOptions): grpc.ClientDuplexStream<_pipelora_v1_Frame, _pipelora_v1_Ack__Output>;
  Push(options?: grpc.CallOptions): grpc.ClientDuplexStream<_pipelora_v1_Frame, _pipelora_v1_Ack__Output>;
  push(metadata: grpc.Metadata, options?: grpc.CallOptions): grpc.ClientDuplexStream<_pipelora_v1_Frame, _pipelora_v1_Ack__Output>;
  push(options?: grpc.CallOptions): grpc.ClientDuplexStream<_pipelora_v1_Frame, _pipelora_v1_Ack__Output>;
  
}

export interface TensorsHandlers extends grpc.UntypedServiceImplementation {
  Push: grpc.handleBidiStreamingCall<_pipelora_v1_Frame__Output, _pipelora_v1_Ack>;
  
}

export interface TensorsDefinition extends grpc.ServiceDefinition {
  Push: MethodDefinition<_pipelora_v1_Frame, _pipelora_v1_Ack, _pipelora_v1_Frame__Output, _pipelora_v1_Ack__Output>
}
