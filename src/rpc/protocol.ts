import { join } from "node:path";
import { crc32 } from "node:zlib";
import { type ChannelOptions, type GrpcObject, loadPackageDefinition, type ServiceDefinition } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { PACKAGE_ROOT } from "../common/root.ts";
import type { ProtoGrpcType as ControlTypes } from "./generated/control.ts";
import type { ProtoGrpcType as TensorTypes } from "./generated/tensors.ts";

/** Raised when the meaning of proto/ changes. Processes of different versions refuse each other. */
export const PROTOCOL_VERSION = 14;

const definition = loadSync(["pipelora/v1/control.proto", "pipelora/v1/tensors.proto"], {
  includeDirs: [join(PACKAGE_ROOT, "proto")],
  longs: Number,
  defaults: true,
  oneofs: true,
});

/** Field 15, fixed32, in front of a control message's own: the checksum of what follows. Tensor frames have one of their own. */
const CHECKSUM_TAG = (15 << 3) | 5;
const CHECKSUM_END = 5;

interface Codec {
  serialize: (value: never) => Buffer;
  deserialize: (bytes: Buffer) => unknown;
}

/** TCP's checksum misses one damaged segment in 65,536. Messages are checked on plaintext connections too. */
function checked({ serialize, deserialize }: Codec): Codec {
  return {
    serialize: (value) => {
      const body = serialize(value);
      const bytes = Buffer.allocUnsafe(CHECKSUM_END + body.length);
      bytes[0] = CHECKSUM_TAG;
      bytes.writeUInt32LE(crc32(body), 1);
      body.copy(bytes, CHECKSUM_END);
      return bytes;
    },
    deserialize: (bytes) => {
      const body = bytes.subarray(CHECKSUM_END);
      if (bytes[0] !== CHECKSUM_TAG || bytes.length < CHECKSUM_END || bytes.readUInt32LE(1) !== crc32(body)) {
        throw new Error("a control message came damaged");
      }
      return deserialize(body);
    },
  };
}

const session = (definition["pipelora.v1.Coordination"] as ServiceDefinition)["Session"]!;
const up = checked({ serialize: session.requestSerialize, deserialize: session.requestDeserialize });
const down = checked({ serialize: session.responseSerialize, deserialize: session.responseDeserialize });
Object.assign(session, {
  requestSerialize: up.serialize,
  requestDeserialize: up.deserialize,
  responseSerialize: down.serialize,
  responseDeserialize: down.deserialize,
});

export const protocol = (loadPackageDefinition(definition) as GrpcObject as unknown as ControlTypes & TensorTypes)
  .pipelora.v1 as ControlTypes["pipelora"]["v1"] & TensorTypes["pipelora"]["v1"];

/** Control messages as bytes, for workers that pass them on to each other. */
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
  // Traffic between workers never goes through a proxy of the environment.
  "grpc.enable_http_proxy": 0,
  // Streams are never retried, so no retry buffer is kept.
  "grpc.enable_retries": 0,
  // Channel statistics, which nobody reads, are switched off.
  "grpc.enable_channelz": 0,
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": 2_000,
};
