import { credentials, loadPackageDefinition, type ServiceClientConstructor, type ServiceError } from "@grpc/grpc-js";
import { service } from "grpc-health-check";

type Reply = { readonly status: string };
type Check = (
  request: { service: string },
  options: { deadline: number },
  done: (error: ServiceError | null, reply?: Reply) => void,
) => void;

const Client = loadPackageDefinition({ Health: service })["Health"] as ServiceClientConstructor;

/** What grpc.health.v1 at an address answers: a status, or "unreachable". */
export async function probe(address: string, name = ""): Promise<string> {
  const client = new Client(address, credentials.createInsecure());
  try {
    return await new Promise((resolve) => {
      const check = (client as unknown as { Check: Check }).Check.bind(client);
      check({ service: name }, { deadline: Date.now() + 2_000 }, (error, reply) =>
        resolve(error === null ? reply!.status : "unreachable"),
      );
    });
  } finally {
    client.close();
  }
}

/** Probes until the answer is `wanted`, as a kubelet does; returns the last answer. */
export async function probeUntil(address: string, wanted: string, name = ""): Promise<string> {
  const deadline = Date.now() + 20_000;
  for (;;) {
    const answer = await probe(address, name);
    if (answer === wanted || Date.now() > deadline) return answer;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
