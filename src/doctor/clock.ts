import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import { PACKAGE_ROOT } from "../common/root.ts";
import { type Finding, fail, ok, warn } from "./finding.ts";

/** systemd-timesyncd, and chrony and ntpd on most systems, keep this file while the clock is synchronised. */
const SYNCHRONISED = [
  "/run/systemd/timesync/synchronized",
  "/run/chrony/chronyd.sock",
  "/run/chrony/chronyd.pid",
  "/run/ntpd.pid",
];

/** Certificates and files' times depend on the clock. A clock that is behind this program's own release date is wrong. */
export function clockFinding(
  now = Date.now(),
  written = statSync(join(PACKAGE_ROOT, "package.json")).mtimeMs,
): Finding {
  const found = new Date(now).toISOString();
  const day = 86_400_000;
  if (now < written - day)
    return fail(
      "clock",
      `${found}, before this program was installed`,
      "Set the clock: certificates count as not yet valid.",
    );
  return SYNCHRONISED.some((path) => existsSync(path))
    ? ok("clock", `${found}, kept by a time service`)
    : warn(
        "clock",
        `${found}, no time service is seen`,
        "Over several machines, keep clocks within a second (chrony, systemd-timesyncd); in a container the host does.",
      );
}
