import { join } from "node:path";
import { type ChannelOptions, type GrpcObject, loadPackageDefinition } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { PACKAGE_ROOT } from "../common/root.ts";
import type { ProtoGrpcType as ControlTypes } from "./generated/control.ts";
import type { ProtoGrpcType as TensorTypes } from "./generated/tensors.ts";

/** Raised when proto/ changes its meaning; processes of different versions refuse each other. */
export const PROTOCOL_VERSION = 6;

const definition = loadSync(["pipelora/v1/control.proto", "pipelora/v1/tensors.proto"], {
  includeDirs: [join(PACKAGE_ROOT, "proto")],
  longs: Number,
  defaults: true,
  oneofs: true,
});

export const protocol = (loadPackageDefinition(definition) as GrpcObject as unknown as ControlTypes & TensorTypes)
  .pipelora.v1 as ControlTypes["pipelora"]["v1"] & TensorTypes["pipelora"]["v1"];

/** Control messages as bytes: for those that workers pass on to each other. */
export const { responseSerialize: encodeRequest, responseDeserialize: decodeRequest } =
  protocol.Coordination.service.Session;
export const { requestSerialize: encodeReply, requestDeserialize: decodeReply } = protocol.Coordination.service.Session;

export const CHANNEL_OPTIONS: ChannelOptions = {
  "grpc.max_receive_message_length": -1,
  "grpc.max_send_message_length": -1,
  "grpc.keepalive_time_ms": 10_000,
  "grpc.keepalive_timeout_ms": 10_000,
  "grpc.keepalive_permit_without_calls": 1,
  "grpc-node.flow_control_window": 16 * 1024 * 1024,
  // A proxy from the environment must never stand between two workers.
  "grpc.enable_http_proxy": 0,
  // Streams are never retried, so nothing is kept for that.
  "grpc.enable_retries": 0,
  // Counts and events of every message, which nobody asks for.
  "grpc.enable_channelz": 0,
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": 2_000,
};
