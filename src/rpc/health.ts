import type { Server } from "@grpc/grpc-js";
import { HealthImplementation } from "grpc-health-check";
import { type ListeningServer, listenToAnyone } from "./server.ts";

/** The service whose status is SERVING as long as this process answers at all. */
export const LIVENESS = "liveness";
/** The whole server, by the protocol's convention: SERVING while the process takes part in a run. */
const READINESS = "";

/** What grpc.health.v1 says of this process. */
export class Health {
  readonly #service = new HealthImplementation({ [READINESS]: "NOT_SERVING", [LIVENESS]: "SERVING" });

  /** Adds grpc.health.v1 to a server. */
  serve(server: Server): void {
    this.#service.addToServer(server);
  }

  set ready(ready: boolean) {
    this.#service.setStatus(READINESS, ready ? "SERVING" : "NOT_SERVING");
  }
}

/**
 * A plaintext port with the health service and nothing else, for probes that can't do mTLS
 * (docs/decisions/runs/health-port.md).
 * Errors: PL_PORT_UNAVAILABLE.
 */
export function listenForProbes(address: string, health: Health): Promise<ListeningServer> {
  return listenToAnyone(
    address,
    { "grpc.max_receive_message_length": 4096, "grpc.max_concurrent_streams": 16 },
    (server) => health.serve(server),
  );
}
