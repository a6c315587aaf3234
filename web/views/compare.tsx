import { useState } from "preact/hooks";
import type { RunList, RunSummary, Series } from "../../src/serve/page/wire.ts";
import { type Line, Plot } from "../charts/plot.tsx";
import { NONE, useFormat } from "../format.ts";
import { useAnswer } from "../hooks.ts";
import { useWords } from "../language.ts";
import { DataTable } from "../parts/data-table.tsx";
import { StatusPill } from "../parts/status.tsx";

/** As many colours as are told apart. */
const MOST_DRAWN = 8;
const POINTS = 400;

/** Runs of a sweep, or of a folder, in one picture and one table. */
export function Compare({ list, open }: { readonly list: RunList; readonly open: (run: string) => void }) {
  const words = useWords();
  const format = useFormat();
  const [off, setOff] = useState<ReadonlySet<string>>(new Set());
  const drawable = list.runs.filter(({ step }) => step > 0);
  const drawn = drawable.filter(({ id }) => !off.has(id)).slice(0, MOST_DRAWN);
  const place = (id: string) => drawn.findIndex((run) => run.id === id);
  const toggle = (id: string) => {
    const next = new Set(off);
    if (!next.delete(id)) next.add(id);
    setOff(next);
  };
  const differing = Object.entries(list.differing);
  return (
    <>
      <Curves runs={drawn} />
      <p class="hint">{drawable.length > MOST_DRAWN && words.compare.most(MOST_DRAWN)}</p>
      <div class="card">
        <DataTable
          caption={words.compare.title}
          lines
          head={[
            ...[words.compare.name, words.compare.shown, words.compare.status, words.step, words.loss],
            ...[words.evalLoss, `${words.evalLoss}, ${words.best}`, words.tokensPerSecond],
            ...differing.map(([name]) => name),
          ]}
          rows={list.runs.map((run, row) => [
            <button key={run.id} type="button" class="link" onClick={() => open(run.id)}>
              {run.name}
            </button>,
            <label key={run.id} class="check">
              <input
                type="checkbox"
                aria-label={`${words.compare.shown}: ${run.name}`}
                checked={place(run.id) >= 0}
                disabled={run.step === 0 || (place(run.id) < 0 && drawn.length >= MOST_DRAWN)}
                onChange={() => toggle(run.id)}
              />
              {place(run.id) >= 0 && <i class={`swatch run-${place(run.id)}`} />}
            </label>,
            <StatusPill key={run.id} status={run.status} />,
            run.maxSteps === null
              ? format.count(run.step)
              : `${format.count(run.step)} / ${format.count(run.maxSteps)}`,
            ...[run.loss, run.evalLoss, run.bestEvalLoss, run.tokensPerSecond].map(format.number),
            ...differing.map(([name, values]) => <code key={name}>{values[row] ?? NONE}</code>),
          ])}
        />
      </div>
    </>
  );
}

function Curves({ runs }: { readonly runs: readonly RunSummary[] }) {
  const words = useWords();
  const losses = useSeveral(runs, ({ points }) => points.step.map((step, at) => [step, points.loss[at] ?? null]));
  const evaluations = useSeveral(runs, (series) => series.evaluations.map(({ step, loss }) => [step, loss]));
  return (
    <div class="charts">
      <Plot title={words.loss} {...losses} empty={words.noPoints} />
      <Plot title={words.evalLoss} {...evaluations} empty={words.noEvaluation} />
    </div>
  );
}

/** Curves of several runs over the steps of all. */
function useSeveral(
  runs: readonly RunSummary[],
  pick: (series: Series) => (readonly [number, number | null])[],
): { steps: number[]; lines: Line[] } {
  // Hooks are called alike however many runs there are.
  const all = Array.from({ length: MOST_DRAWN }, (_, at) => {
    const run = runs[at];
    return useAnswer<Series>(
      run === undefined ? null : "page/series",
      { run: run?.id ?? "", points: POINTS },
      run?.step,
    );
  });
  const curves = runs.map((run, at) => ({
    run,
    at,
    points: new Map(all[at]!.value === null ? [] : pick(all[at]!.value)),
  }));
  const steps = [...new Set(curves.flatMap(({ points }) => [...points.keys()]))].sort((a, b) => a - b);
  const lines = curves.map(({ run, at, points }) => ({
    label: run.name,
    values: steps.map((step) => points.get(step) ?? null),
    colour: `run-${at}`,
  }));
  return { steps, lines };
}
