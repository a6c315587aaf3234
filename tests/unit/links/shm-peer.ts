// The sending process of shm.test.ts: sends one tensor and waits to be killed.
import { loadEngine } from "../../../src/engine/index.ts";
import { serveSenders } from "../../../src/links/service.ts";
import { ShmSender } from "../../../src/links/shm-sender.ts";
import { listen } from "../../../src/rpc/server.ts";
import { NO_TRUST } from "../../../src/rpc/trust.ts";
import { pattern, tensor } from "./suite.ts";

const refused = () => {};
const ends = { session: "s", fromRank: 0, toRank: 1 };
const sender = new ShmSender({ ends, timeoutMs: 60_000, onFailed: () => {} }, loadEngine());
const server = await listen("127.0.0.1:0", NO_TRUST, refused, (grpc) => serveSenders(grpc, () => sender));
await sender.send("first", tensor(pattern(1 << 20, 1)));
process.send!(server.port);
process.on("disconnect", () => process.exit());
