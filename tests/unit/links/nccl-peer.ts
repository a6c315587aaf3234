// The sending process of nccl.test.ts: sends one tensor and waits to be killed.
import { GrpcSender } from "../../../src/links/grpc-sender.ts";
import { NcclSendingCarrier } from "../../../src/links/nccl-carrier.ts";
import { serveSenders } from "../../../src/links/service.ts";
import { listen } from "../../../src/rpc/server.ts";
import { NO_TRUST } from "../../../src/rpc/trust.ts";
import { fromDeviceMemory, loadWithHostNccl } from "./host-nccl.ts";
import { pattern, tensor } from "./suite.ts";

const addon = loadWithHostNccl();
const id = addon.ncclUniqueId();
const timeoutMs = 60_000;
const sender = new GrpcSender(
  { ends: { session: "s", fromRank: 0, toRank: 1 }, timeoutMs, onFailed: () => {} },
  addon.crc32c,
  (onFailed) => new NcclSendingCarrier({ addon, device: "cpu", id, timeoutMs }, onFailed),
);
const server = await listen(
  "127.0.0.1:0",
  NO_TRUST,
  () => {},
  (grpc) => serveSenders(grpc, () => sender),
);
process.on("disconnect", () => process.exit());
process.send!({ port: server.port, id: Buffer.from(id).toString("hex") });
await fromDeviceMemory(sender).send("first", tensor(pattern(1 << 20, 1)));
