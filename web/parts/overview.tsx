import type { RunSummary } from "../../src/serve/page/wire.ts";
import { useFormat } from "../format.ts";
import { useWords } from "../language.ts";
import { StatusPill } from "./status.tsx";

/** Where a run is, in one strip. */
export function Overview({ summary }: { readonly summary: RunSummary }) {
  const words = useWords();
  const format = useFormat();
  const { status, step, maxSteps, epoch, loss, evalLoss, bestEvalLoss, tokensPerSecond, secondsLeft, startedAt } =
    summary;
  const better = bestEvalLoss !== null && bestEvalLoss !== evalLoss;
  const facts: readonly { readonly name: string; readonly value: string; readonly note?: string }[] = [
    {
      name: words.step,
      value: maxSteps === null ? format.count(step) : `${format.count(step)} / ${format.count(maxSteps)}`,
    },
    { name: words.epoch, value: format.number(epoch) },
    { name: words.loss, value: format.number(loss) },
    {
      ...{ name: words.evalLoss, value: format.number(evalLoss) },
      ...(better ? { note: `${words.best} ${format.number(bestEvalLoss)}` } : {}),
    },
    { name: words.tokensPerSecond, value: format.number(tokensPerSecond) },
    secondsLeft === null
      ? { name: words.started, value: format.time(startedAt) }
      : { name: words.left, value: format.duration(secondsLeft) },
  ];
  return (
    <section class="overview card" aria-label={words.progress}>
      <div class="where">
        <span aria-live="polite">
          <StatusPill status={status} />
        </span>
        <progress value={step} max={Math.max(1, maxSteps ?? step)} aria-label={words.progress}>
          {maxSteps !== null && words.stepOf(format.count(step), format.count(maxSteps))}
        </progress>
      </div>
      <dl class="facts">
        {facts.map(({ name, value, note }) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>
              {value}
              {note !== undefined && <small>{note}</small>}
            </dd>
          </div>
        ))}
      </dl>
      <Trouble summary={summary} />
    </section>
  );
}

function Trouble({ summary: { status, error, heardAt } }: { readonly summary: RunSummary }) {
  const words = useWords();
  const format = useFormat();
  if (status === "silent") return <p class="notice warn">{words.silentSince(format.time(heardAt))}</p>;
  if (error === null) return null;
  return (
    <p class={`notice ${status === "stopped" ? "calm" : "bad"}`} role="alert">
      <code>{error.code}</code> {error.message}
      {error.hint !== null && <small>{error.hint}</small>}
    </p>
  );
}
