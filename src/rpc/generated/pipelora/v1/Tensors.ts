// Original file: proto/pipelora/v1/tensors.proto

import type * as grpc from '@grpc/grpc-js'
import type { MethodDefinition } from '@grpc/proto-loader'
import type { Frame as _pipelora_v1_Frame, Frame__Output as _pipelora_v1_Frame__Output } from '../../pipelora/v1/Frame.ts';
import type { Open as _pipelora_v1_Open, Open__Output as _pipelora_v1_Open__Output } from '../../pipelora/v1/Open.ts';
import type { PullRequest as _pipelora_v1_PullRequest, PullRequest__Output as _pipelora_v1_PullRequest__Output } from '../../pipelora/v1/PullRequest.ts';
import type { SharedMemory as _pipelora_v1_SharedMemory, SharedMemory__Output as _pipelora_v1_SharedMemory__Output } from '../../pipelora/v1/SharedMemory.ts';

export interface TensorsClient extends grpc.Client {
  Pull(metadata: grpc.Metadata, options?: grpc.CallOptions): grpc.ClientDuplexStream<_pipelora_v1_PullRequest, _pipelora_v1_Frame__Output>;
  Pull(options?: grpc.CallOptions): grpc.ClientDuplexStream<_pipelora_v1_PullRequest, _pipelora_v1_Frame__Output>;
  pull(metadata: grpc.Metadata, options?: grpc.CallOptions): grpc.ClientDuplexStream<_pipelora_v1_PullRequest, _pipelora_v1_Frame__Output>;
  pull(options?: grpc.CallOptions): grpc.ClientDuplexStream<_pipelora_v1_PullRequest, _pipelora_v1_Frame__Output>;
  
  Share(argument: _pipelora_v1_Open, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_pipelora_v1_SharedMemory__Output>): grpc.ClientUnaryCall;
  Share(argument: _pipelora_v1_Open, metadata: grpc.Metadata, callback: grpc.requestCallback<_pipelora_v1_SharedMemory__Output>): grpc.ClientUnaryCall;
  Share(argument: _pipelora_v1_Open, options: grpc.CallOptions, callback: grpc.requestCallback<_pipelora_v1_SharedMemory__Output>): grpc.ClientUnaryCall;
  Share(argument: _pipelora_v1_Open, callback: grpc.requestCallback<_pipelora_v1_SharedMemory__Output>): grpc.ClientUnaryCall;
  share(argument: _pipelora_v1_Open, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_pipelora_v1_SharedMemory__Output>): grpc.ClientUnaryCall;
  share(argument: _pipelora_v1_Open, metadata: grpc.Metadata, callback: grpc.requestCallback<_pipelora_v1_SharedMemory__Output>): grpc.ClientUnaryCall;
  share(argument: _pipelora_v1_Open, options: grpc.CallOptions, callback: grpc.requestCallback<_pipelora_v1_SharedMemory__Output>): grpc.ClientUnaryCall;
  share(argument: _pipelora_v1_Open, callback: grpc.requestCallback<_pipelora_v1_SharedMemory__Output>): grpc.ClientUnaryCall;
  
}

export interface TensorsHandlers extends grpc.UntypedServiceImplementation {
  Pull: grpc.handleBidiStreamingCall<_pipelora_v1_PullRequest__Output, _pipelora_v1_Frame>;
  
  Share: grpc.handleUnaryCall<_pipelora_v1_Open__Output, _pipelora_v1_SharedMemory>;
  
}

export interface TensorsDefinition extends grpc.ServiceDefinition {
  Pull: MethodDefinition<_pipelora_v1_PullRequest, _pipelora_v1_Frame, _pipelora_v1_PullRequest__Output, _pipelora_v1_Frame__Output>
  Share: MethodDefinition<_pipelora_v1_Open, _pipelora_v1_SharedMemory, _pipelora_v1_Open__Output, _pipelora_v1_SharedMemory__Output>
}
