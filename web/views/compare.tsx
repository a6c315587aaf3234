import { useEffect, useState } from "preact/hooks";
import type { RunList, RunSummary, Series } from "../../src/serve/page/wire.ts";
import { type Line, Plot } from "../charts/plot.tsx";
import { NONE, useFormat } from "../format.ts";
import { useWords } from "../language.ts";
import { DataTable } from "../parts/data-table.tsx";
import { StatusPill } from "../parts/status.tsx";
import { ask } from "../server.ts";

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
  const series = useSeriesOf(runs);
  const losses = linesOf(runs, series, ({ points }) => points.step.map((step, at) => [step, points.loss[at] ?? null]));
  const evaluations = linesOf(runs, series, (own) => own.evaluations.map(({ step, loss }) => [step, loss]));
  const lines = evaluations.lines.map((line) => ({ ...line, sparse: true }));
  return (
    <div class="charts">
      <Plot title={words.loss} {...losses} empty={words.noPoints} />
      <Plot title={words.evalLoss} steps={evaluations.steps} lines={lines} empty={words.noEvaluation} />
    </div>
  );
}

/** By run; each is asked for again when it has done more steps. */
function useSeriesOf(runs: readonly RunSummary[]): ReadonlyMap<string, Series> {
  const [known, setKnown] = useState<ReadonlyMap<string, Series>>(new Map());
  useEffect(() => {
    const ending = new AbortController();
    for (const { id, step } of runs) {
      if (known.get(id)?.lastStep === step) continue;
      ask<Series>("page/series", { run: id, points: POINTS }, ending.signal).then(
        (series) => setKnown((before) => new Map(before).set(id, series)),
        // The list tells what became of a run that does not answer.
        () => {},
      );
    }
    return () => ending.abort();
  }, [JSON.stringify(runs.map(({ id, step }) => [id, step]))]);
  return known;
}

/** Curves of several runs over the steps of all. */
function linesOf(
  runs: readonly RunSummary[],
  series: ReadonlyMap<string, Series>,
  pick: (series: Series) => (readonly [number, number | null])[],
): { steps: number[]; lines: Line[] } {
  const curves = runs.map(({ id, name }, at) => {
    const own = series.get(id);
    return { label: name, colour: `run-${at}`, points: new Map(own === undefined ? [] : pick(own)) };
  });
  const steps = [...new Set(curves.flatMap(({ points }) => [...points.keys()]))].sort((a, b) => a - b);
  const lines = curves.map(({ points, ...line }) => ({
    ...line,
    values: steps.map((step) => points.get(step) ?? null),
  }));
  return { steps, lines };
}
