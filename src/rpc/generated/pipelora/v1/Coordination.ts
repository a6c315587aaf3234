// Original file: proto/pipelora/v1/control.proto

import type * as grpc from '@grpc/grpc-js'
import type { MethodDefinition } from '@grpc/proto-loader'
import type { FromWorker as _pipelora_v1_FromWorker, FromWorker__Output as _pipelora_v1_FromWorker__Output } from '../../pipelora/v1/FromWorker.ts';
import type { ToWorker as _pipelora_v1_ToWorker, ToWorker__Output as _pipelora_v1_ToWorker__Output } from '../../pipelora/v1/ToWorker.ts';

export interface CoordinationClient extends grpc.Client {
  Session(metadata: grpc.Metadata, options?: grpc.CallOptions): grpc.ClientDuplexStream<_pipelora_v1_FromWorker, _pipelora_v1_ToWorker__Output>;
  Session(options?: grpc.CallOptions): grpc.ClientDuplexStream<_pipelora_v1_FromWorker, _pipelora_v1_ToWorker__Output>;
  session(metadata: grpc.Metadata, options?: grpc.CallOptions): grpc.ClientDuplexStream<_pipelora_v1_FromWorker, _pipelora_v1_ToWorker__Output>;
  session(options?: grpc.CallOptions): grpc.ClientDuplexStream<_pipelora_v1_FromWorker, _pipelora_v1_ToWorker__Output>;
  
}

export interface CoordinationHandlers extends grpc.UntypedServiceImplementation {
  Session: grpc.handleBidiStreamingCall<_pipelora_v1_FromWorker__Output, _pipelora_v1_ToWorker>;
  
}

export interface CoordinationDefinition extends grpc.ServiceDefinition {
  Session: MethodDefinition<_pipelora_v1_FromWorker, _pipelora_v1_ToWorker, _pipelora_v1_FromWorker__Output, _pipelora_v1_ToWorker__Output>
}
