import type { ClientDuplexStream, Server, ServerDuplexStream } from "@grpc/grpc-js";
import type { Ack, Ack__Output } from "./generated/pipelora/v1/Ack.ts";
import type { Frame, Frame__Output } from "./generated/pipelora/v1/Frame.ts";
import { protocol } from "./protocol.ts";
import { callMetadata, channelTo, type Trust } from "./trust.ts";

/** Adds the tensor service: `onFrame` gets every frame and a function that returns its credit to the sender. */
export function serveTensors(
  server: Server,
  onFrame: (frame: Frame__Output, acknowledge: (bytes: number) => void) => void,
): void {
  server.addService(protocol.Tensors.service, {
    Push: (stream: ServerDuplexStream<Frame__Output, Ack>) => {
      stream.on("data", (frame: Frame__Output) =>
        onFrame(frame, (bytes) => {
          if (stream.writable) stream.write({ bytes });
        }),
      );
      stream.on("end", () => stream.end());
      stream.on("error", () => {});
    },
  });
}

export interface TensorStream {
  push(frame: Frame): void;
  close(): void;
}

/** Opens the stream to a peer; `onClosed` is called once when it breaks, not after close(). */
export function openTensorStream(
  address: string,
  trust: Trust,
  onAck: (bytes: number) => void,
  onClosed: (reason: string) => void,
): TensorStream {
  const channel = channelTo(trust);
  const client = new protocol.Tensors(address, channel.credentials, channel.options);
  const stream: ClientDuplexStream<Frame, Ack__Output> = client.Push(callMetadata(trust));
  let open = true;
  const broken = (reason: string) => {
    if (open) onClosed(reason);
    open = false;
  };
  stream.on("data", (ack: Ack__Output) => onAck(ack.bytes));
  stream.on("error", (error) => broken(error.message));
  stream.on("end", () => broken("the peer closed the stream"));
  return {
    push: (frame) => {
      stream.write(frame);
    },
    close: () => {
      open = false;
      stream.cancel();
      client.close();
    },
  };
}
