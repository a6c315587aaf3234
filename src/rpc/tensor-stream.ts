import {
  type Client,
  type ClientDuplexStream,
  Metadata,
  makeGenericClientConstructor,
  type Server,
  type ServerDuplexStream,
  type ServerUnaryCall,
  type ServiceDefinition,
  type ServiceError,
  type sendUnaryData,
  status,
} from "@grpc/grpc-js";
import type { Open, Open__Output } from "./generated/pipelora/v1/Open.ts";
import type { PullRequest, PullRequest__Output } from "./generated/pipelora/v1/PullRequest.ts";
import type { SharedMemory, SharedMemory__Output } from "./generated/pipelora/v1/SharedMemory.ts";
import { protocol } from "./protocol.ts";
import { callMetadata, channelTo, type Trust } from "./trust.ts";

/** The service with frames as bytes: tensor-frame.ts makes and reads them. */
const service = {
  ...protocol.Tensors.service,
  Pull: {
    ...protocol.Tensors.service.Pull,
    responseSerialize: (frame: Buffer) => frame,
    responseDeserialize: (frame: Buffer) => frame,
  },
} satisfies ServiceDefinition;

/** The sending rank's end of a stream. */
export interface FrameSink {
  /**
   * `sent` is called when the next frame may follow, never once the stream has closed. One frame at a time, so nothing waits in a queue.
   */
  write(frame: Buffer, sent: () => void): void;
  readonly onRequest: (listener: (request: PullRequest__Output) => void) => void;
  /** Once. */
  readonly onClosed: (listener: () => void) => void;
  /** Tells the other end that it is served, though nothing may be there to send yet. */
  accept(): void;
  refuse(refusal: Refusal): void;
  end(): void;
}

/** Why a peer is refused; `final`: a later attempt will not help. */
export interface Refusal {
  readonly reason: string;
  readonly final: boolean;
}

export interface TensorService {
  /** Gets every stream that a peer opens. */
  readonly onPull: (sink: FrameSink) => void;
  /** Answers a peer that asks for shared memory. */
  readonly onShare: (open: Open__Output) => SharedMemory | Refusal;
}

/** Adds the tensor service. */
export function serveTensors(server: Server, { onPull, onShare }: TensorService): void {
  server.addService(service, {
    Share: ({ request }: ServerUnaryCall<Open__Output, SharedMemory>, answer: sendUnaryData<SharedMemory>) => {
      const shared = onShare(request);
      if ("reason" in shared) answer(refusal(shared));
      else answer(null, shared);
    },
    Pull: (stream: ServerDuplexStream<PullRequest__Output, Buffer>) => {
      let open = true;
      let closed = () => {};
      const close = () => {
        if (open) closed();
        open = false;
      };
      for (const event of ["end", "error", "cancelled"]) stream.on(event, close);
      onPull({
        write: (frame, sent) => {
          stream.write(frame, () => {
            if (open) sent();
          });
        },
        onRequest: (listener) => stream.on("data", listener),
        onClosed: (listener) => {
          closed = listener;
        },
        accept: () => stream.sendMetadata(new Metadata()),
        refuse: (why) => stream.emit("error", refusal(why)),
        end: () => {
          open = false;
          stream.end();
        },
      });
    },
  });
}

function refusal({ reason, final }: Refusal): { code: status; details: string } {
  return { code: final ? status.FAILED_PRECONDITION : status.UNAVAILABLE, details: reason };
}

/** Why a peer sends this rank nothing; `code` null: a later attempt may succeed. */
export interface Refused {
  readonly reason: string;
  readonly code: "PL_PROTOCOL_MISMATCH" | "PL_PEER_UNTRUSTED" | null;
}

function refusedBy({ code, details, message }: ServiceError): Refused {
  const meaning = code === status.FAILED_PRECONDITION ? "PL_PROTOCOL_MISMATCH" : null;
  return { reason: details || message, code: code === status.UNAUTHENTICATED ? "PL_PEER_UNTRUSTED" : meaning };
}

export interface FrameSource {
  request(request: PullRequest): void;
  close(): void;
}

interface TensorsClient extends Client {
  Pull(metadata: Metadata): ClientDuplexStream<PullRequest, Buffer>;
  Share(
    open: Open,
    metadata: Metadata,
    callback: (error: ServiceError | null, shared?: SharedMemory__Output) => void,
  ): void;
}

/** The receiving rank's way to one peer. */
export class TensorClient {
  readonly #client: TensorsClient;
  readonly #trust: Trust;

  constructor(address: string, trust: Trust) {
    const Client = makeGenericClientConstructor(service, "Tensors");
    const channel = channelTo(trust);
    this.#client = new Client(address, channel.credentials, channel.options) as unknown as TensorsClient;
    this.#trust = trust;
  }

  /** The peer's shared memory for this link, or why there is none. */
  share(open: Open): Promise<SharedMemory__Output | Refused> {
    return new Promise((resolve) =>
      this.#client.Share(open, this.#metadata(), (error, shared) =>
        resolve(error === null ? shared! : refusedBy(error)),
      ),
    );
  }

  /** Opens a stream. `onClosed` is called once when it has ended, not after close(). */
  pull(onOpened: () => void, onFrame: (frame: Buffer) => void, onClosed: (why: Refused) => void): FrameSource {
    const stream = this.#client.Pull(this.#metadata());
    let open = true;
    const ended = (why: Refused) => {
      if (open) onClosed(why);
      open = false;
    };
    stream.on("metadata", () => {
      if (open) onOpened();
    });
    stream.on("data", (frame) => {
      if (open) onFrame(frame);
    });
    stream.on("error", (error) => ended(refusedBy(error as ServiceError)));
    stream.on("end", () => ended({ reason: "the peer ended the stream", code: null }));
    return {
      request: (request) => {
        if (open) stream.write(request);
      },
      close: () => {
        open = false;
        stream.cancel();
      },
    };
  }

  close(): void {
    this.#client.close();
  }

  /** The peer may start a moment later than this call: it waits for the connection, up to the caller's deadline. */
  #metadata(): Metadata {
    const metadata = callMetadata(this.#trust);
    metadata.setOptions({ waitForReady: true });
    return metadata;
  }
}
