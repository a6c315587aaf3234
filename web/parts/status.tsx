import type { RunStatus } from "../../src/serve/page/wire.ts";
import { useWords } from "../language.ts";

const LOOKS: Readonly<Record<RunStatus, string>> = {
  ...{ waiting: "calm", running: "busy", done: "good", stopped: "calm", failed: "bad", silent: "warn" },
};

export function StatusPill({ status }: { readonly status: RunStatus }) {
  const words = useWords();
  return <span class={`pill ${LOOKS[status]}`}>{words.status[status]}</span>;
}
