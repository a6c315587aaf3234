import type { RunList, RunSummary, RunView } from "../../src/serve/page/wire.ts";
import { type LiveRun, useAnswer } from "../hooks.ts";
import { useWords } from "../language.ts";
import type { View } from "../route.ts";
import { Chat } from "../views/chat.tsx";
import { Checkpoints } from "../views/checkpoints.tsx";
import { Compare } from "../views/compare.tsx";
import { Curves } from "../views/curves.tsx";
import { Log } from "../views/log.tsx";
import { Nodes } from "../views/nodes.tsx";
import { PlacementView } from "../views/placement.tsx";
import { Settings } from "../views/settings.tsx";
import { TimelineView } from "../views/timeline.tsx";
import { Waiting } from "./notice.tsx";
import { Overview } from "./overview.tsx";

interface RunPageProps {
  readonly view: View;
  readonly summary: RunSummary;
  readonly list: RunList;
  readonly live: LiveRun;
  readonly open: (run: string) => void;
}

/** One view of a run; or all runs side by side. */
export function RunPage({ view, summary, list, live, open }: RunPageProps) {
  const words = useWords();
  return (
    <>
      {live.lost && (
        <p class="notice warn" role="status">
          {words.lost}
        </p>
      )}
      {view !== "compare" && <Overview summary={live.summary ?? summary} />}
      <h2 id="view" tabIndex={-1}>
        {words.view[view]}
      </h2>
      {view === "compare" ? (
        <Compare list={list} open={open} />
      ) : (
        <Shown
          {...{ view, live }}
          run={summary.id}
          summary={live.summary ?? summary}
          answers={list.chat && summary.id === ""}
        />
      )}
    </>
  );
}

interface ShownProps {
  readonly view: Exclude<View, "compare">;
  readonly run: string;
  readonly summary: RunSummary;
  readonly live: LiveRun;
  readonly answers: boolean;
}

function Shown({ view, run, summary, live, answers }: ShownProps) {
  switch (view) {
    case "curves":
      return <Curves key={run} {...{ run, live, summary }} />;
    case "timeline":
      return <TimelineView key={run} {...{ run, live }} />;
    case "log":
      return <Log key={run} {...{ run, live }} />;
    case "chat":
      return <Chat key={run} {...{ run, live, answers }} />;
    default:
      return <Facts key={run} {...{ view, run, live }} />;
  }
}

interface FactsProps {
  readonly view: "placement" | "nodes" | "checkpoints" | "settings";
  readonly run: string;
  readonly live: LiveRun;
}

/** Views of what is small. */
function Facts({ view, run, live }: FactsProps) {
  const { value, error } = useAnswer<RunView>("page/run", { run }, live.revisions?.view);
  if (value === null) return <Waiting error={error} />;
  switch (view) {
    case "placement":
      return <PlacementView placement={value.placement} />;
    case "nodes":
      return <Nodes nodes={value.nodes} links={value.links} />;
    case "checkpoints":
      return <Checkpoints checkpoints={value.checkpoints} />;
    case "settings":
      return <Settings settings={value.settings} />;
  }
}
