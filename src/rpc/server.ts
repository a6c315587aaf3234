import { Server, ServerCredentials } from "@grpc/grpc-js";
import { PipeloraError } from "../common/errors.ts";
import { CHANNEL_OPTIONS } from "./protocol.ts";

export interface ListeningServer {
  /** The port bound (the address may have asked for port 0). */
  readonly port: number;
  close(): void;
}

/**
 * Binds a gRPC server after `register` has added its services.
 * Errors: PL_PORT_UNAVAILABLE if the address can't be bound.
 */
export async function listen(address: string, register: (server: Server) => void): Promise<ListeningServer> {
  const server = new Server(CHANNEL_OPTIONS);
  register(server);
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync(address, ServerCredentials.createInsecure(), (error, bound) => {
      if (error === null) return resolve(bound);
      reject(
        new PipeloraError("PL_PORT_UNAVAILABLE", `can't listen on ${address}: ${error.message}`, {
          cause: error,
          hint: "Choose another port, or port 0 for any free one.",
        }),
      );
    });
  });
  return { port, close: () => server.forceShutdown() };
}
