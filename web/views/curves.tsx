import { useState } from "preact/hooks";
import type { RunSummary } from "../../src/serve/page/wire.ts";
import { Plot } from "../charts/plot.tsx";
import { useFormat } from "../format.ts";
import { type LiveRun, type Range, type RunSeries, useSeries } from "../hooks.ts";
import { useWords } from "../language.ts";
import { Waiting } from "../parts/notice.tsx";

type Values = readonly (number | null)[];

const LAST = [10_000, 1_000, 100] as const;

interface CurvesProps {
  readonly run: string;
  readonly live: LiveRun;
  readonly summary: RunSummary;
}

export function Curves({ run, live, summary }: CurvesProps) {
  const [range, setRange] = useState<Range>({ kind: "all" });
  const [logarithmic, setLogarithmic] = useState(false);
  const { value, error } = useSeries(run, range, live);
  const words = useWords();
  const onRange = (from: number, to: number) => setRange({ kind: "span", from, to });
  return (
    <>
      <div class="tools">
        <RangeChoice range={range} last={summary.step} onChange={setRange} />
        <label class="check">
          <input
            type="checkbox"
            checked={logarithmic}
            onChange={(event) => setLogarithmic(event.currentTarget.checked)}
          />
          {words.logScale}
        </label>
      </div>
      {value === null ? (
        <Waiting error={error} />
      ) : (
        <Charts series={value} logarithmic={logarithmic} onRange={onRange} />
      )}
    </>
  );
}

interface RangeChoiceProps {
  readonly range: Range;
  readonly last: number;
  readonly onChange: (range: Range) => void;
}

function RangeChoice({ range, last, onChange }: RangeChoiceProps) {
  const words = useWords();
  const format = useFormat();
  const choices: readonly (readonly [string, Range])[] = [
    [words.ranges.all, { kind: "all" }],
    ...LAST.filter((steps) => steps < last).map(
      (steps) => [words.ranges.last(format.count(steps)), { kind: "last", steps }] as const,
    ),
  ];
  const isChosen = (other: Range) => JSON.stringify(range) === JSON.stringify(other);
  return (
    <fieldset class="choice">
      <legend>{words.range}</legend>
      {choices.map(([label, own]) => (
        <button key={label} type="button" aria-pressed={isChosen(own)} onClick={() => onChange(own)}>
          {label}
        </button>
      ))}
      {range.kind === "span" && (
        <button type="button" aria-pressed={true} onClick={() => onChange({ kind: "all" })}>
          {words.rangeChosen(format.count(range.from), format.count(range.to))} <span aria-hidden="true">✕</span>
        </button>
      )}
    </fieldset>
  );
}

interface ChartsProps {
  readonly series: RunSeries;
  readonly logarithmic: boolean;
  readonly onRange: (from: number, to: number) => void;
}

function Charts({ series: { points, evaluations }, logarithmic, onRange }: ChartsProps) {
  const words = useWords();
  const format = useFormat();
  const { step: steps } = points;
  const merged = Math.max(1, ...steps.slice(1).map((step, at) => step - steps[at]!));
  const band = (low: Values, high: Values) => (merged > 1 ? { band: { low, high } } : {});
  return (
    <>
      <div class="charts">
        <Plot
          {...{ title: words.loss, steps, logarithmic, onRange, empty: words.noPoints }}
          lines={[
            { label: words.loss, values: points.loss, colour: "line-loss", ...band(points.lossLow, points.lossHigh) },
          ]}
        />
        <Plot
          {...{ title: words.evalLoss, logarithmic, onRange, empty: words.noEvaluation }}
          steps={evaluations.map(({ step }) => step)}
          lines={[
            { label: words.evalLoss, values: evaluations.map(({ loss }) => loss), colour: "line-eval", sparse: true },
          ]}
        />
        <Plot
          {...{ title: words.learningRate, steps, onRange, empty: words.noPoints }}
          lines={[{ label: words.learningRate, values: points.learningRate, colour: "line-rate" }]}
        />
        <Plot
          {...{ title: words.gradientNorm, steps, onRange, empty: words.noNorm }}
          lines={[
            {
              ...{ label: words.gradientNorm, values: points.gradientNorm, colour: "line-norm" },
              ...band(points.gradientNorm, points.gradientNormHigh),
            },
          ]}
        />
        <Plot
          {...{ title: words.tokensPerSecond, steps, onRange, empty: words.noSpeed }}
          lines={[{ label: words.tokensPerSecond, values: points.tokensPerSecond, colour: "line-speed" }]}
        />
      </div>
      <p class="hint">
        {words.zoomHint} {merged > 1 && words.pointIs(format.count(merged))}
      </p>
    </>
  );
}
