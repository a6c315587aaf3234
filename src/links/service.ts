import type { Server } from "@grpc/grpc-js";
import type { Open__Output } from "../rpc/generated/pipelora/v1/Open.ts";
import type { PullRequest__Output } from "../rpc/generated/pipelora/v1/PullRequest.ts";
import { PROTOCOL_VERSION } from "../rpc/protocol.ts";
import { type FrameSink, type Refusal, serveTensors } from "../rpc/tensor-stream.ts";
import { GrpcSender } from "./grpc-sender.ts";
import { ShmSender } from "./shm-sender.ts";

/** Serves peers that open links. `find` returns the sending end for them; null before this rank has joined their session. */
export function serveSenders(server: Server, find: (open: Open__Output) => GrpcSender | ShmSender | null): void {
  const findFor = (open: Open__Output | null): GrpcSender | ShmSender | Refusal => {
    if (open === null) return { reason: "a stream's first request must say whose it is", final: true };
    if (open.protocol !== PROTOCOL_VERSION) {
      const versions = `rank ${open.toRank} speaks protocol ${open.protocol}, rank ${open.fromRank} ${PROTOCOL_VERSION}`;
      return { reason: versions, final: true };
    }
    const unknown = { reason: `rank ${open.fromRank} has not joined session ${open.session}`, final: false };
    return find(open) ?? unknown;
  };
  const otherKind = { reason: "the two ranks of this link do not agree on its kind", final: true };
  serveTensors(server, {
    onPull: (stream: FrameSink) => {
      let first = true;
      stream.onRequest((request: PullRequest__Output) => {
        if (!first) return;
        first = false;
        const sender = findFor(request.open);
        if ("reason" in sender) return stream.refuse(sender);
        if (!(sender instanceof GrpcSender)) return stream.refuse(otherKind);
        stream.accept();
        sender.attach(stream, request);
      });
    },
    onShare: (open) => {
      const sender = findFor(open);
      if ("reason" in sender) return sender;
      return sender instanceof ShmSender ? sender.address : otherKind;
    },
  });
}
