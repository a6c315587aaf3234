import type { MemoryName, MemoryPart, PlacedDevice, Placement } from "../../src/serve/page/wire.ts";
import { type Format, NONE, useFormat } from "../format.ts";
import { useWords } from "../language.ts";
import { DataTable } from "../parts/data-table.tsx";
import { Empty } from "../parts/notice.tsx";
import type { Words } from "../words/en.ts";

const PARTS: readonly MemoryName[] = ["weights", "lora", "activations", "cache", "driver"];

export function PlacementView({ placement }: { readonly placement: Placement | null }) {
  const words = useWords();
  if (placement === null) return <Empty>{words.placement.none}</Empty>;
  return (
    <>
      <Facts placement={placement} />
      <LayersPicture placement={placement} />
      <MemoryPicture devices={placement.devices} />
    </>
  );
}

function Facts({ placement }: { readonly placement: Placement }) {
  const words = useWords();
  const format = useFormat();
  const { strategy, devices, predicted, measuredStepMs, microBatches, microBatchTokens, replicas } = placement;
  const used = devices.filter(({ segments }) => segments.length > 0).length;
  const facts: readonly (readonly [string, string])[] = [
    [words.placement.strategy, words.placement.summary(strategy, words.placement.devices(used))],
    ...(measuredStepMs === null ? [] : ([[words.placement.stepMeasured, format.ms(measuredStepMs)]] as const)),
    ...(predicted === null
      ? []
      : ([
          [words.placement.stepPredicted, format.ms(predicted.stepMs)],
          [words.placement.idle, format.share(predicted.bubble)],
        ] as const)),
    ...(microBatches === null || microBatchTokens === null
      ? []
      : ([
          [
            words.placement.batches,
            words.placement.batchesOf(format.count(microBatches), format.count(microBatchTokens)),
          ],
        ] as const)),
  ];
  return (
    <>
      <dl class="facts">
        {facts.map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
      {replicas > 1 && <p class="hint">{words.placement.replicas(replicas)}</p>}
    </>
  );
}

const ROW = 30;

function LayersPicture({ placement: { layers, devices } }: { readonly placement: Placement }) {
  const words = useWords();
  // A hairline beside each segment, however many layers there are.
  const gap = 0.001 * layers.length;
  const named = devices.map((device) => ({ device, held: heldText(device, layers) }));
  return (
    <figure class="card">
      <figcaption>
        <h3>{words.placement.title}</h3>
      </figcaption>
      <div class="rows" aria-hidden="true">
        {named.map(({ device, held }) => (
          <div class="row" key={device.rank}>
            <DeviceName device={device} />
            <svg
              aria-hidden="true"
              class="bar"
              viewBox={`0 0 ${Math.max(1, layers.length)} ${ROW}`}
              preserveAspectRatio="none"
              height={ROW}
            >
              <rect class="rail" x={0} y={4} width={Math.max(1, layers.length)} height={ROW - 8} />
              {device.segments.map(({ index, first, last }) => (
                <rect
                  key={index}
                  class={`segment s${index % 2}`}
                  x={first + gap}
                  y={4}
                  width={last - first + 1 - 2 * gap}
                  height={ROW - 8}
                >
                  <title>{`${layers[first]} … ${layers[last]}`}</title>
                </rect>
              ))}
            </svg>
            <span class="value">{held.short}</span>
          </div>
        ))}
        <div class="ends">
          <span />
          <span>
            <span>{layers[0]}</span>
            <span>{layers.at(-1)}</span>
          </span>
          <span />
        </div>
      </div>
      <details>
        <summary>{words.table}</summary>
        <DataTable
          caption={words.placement.title}
          head={[words.placement.rank, words.placement.device, words.placement.node, words.placement.layers]}
          rows={named.map(({ device, held }) => [
            device.rank,
            device.name || NONE,
            device.node || NONE,
            held.long || words.placement.nothing,
          ])}
        />
      </details>
    </figure>
  );
}

function DeviceName({ device: { rank, name, node } }: { readonly device: PlacedDevice }) {
  return (
    <span class="name" title={`${name} @ ${node}`}>
      <b>{rank}</b> {name}
      <small>{node}</small>
    </span>
  );
}

function heldText({ segments }: PlacedDevice, layers: readonly string[]): { short: string; long: string } {
  const short = segments.map(({ first, last }) => (first === last ? `${first}` : `${first}–${last}`)).join(", ");
  const long = segments.map(({ first, last }) =>
    first === last ? layers[first] : `${layers[first]} … ${layers[last]}`,
  );
  return { short: short || NONE, long: long.join("; ") };
}

function MemoryPicture({ devices }: { readonly devices: readonly PlacedDevice[] }) {
  const words = useWords();
  const format = useFormat();
  const used = devices.filter(({ segments, predicted }) => segments.length > 0 || predicted.length > 0);
  const measured = used.some((device) => device.measured.length > 0);
  // A CPU's budget is most of its host's memory: next to it a small shard would not be seen.
  const needed = Math.max(1, ...used.flatMap((device) => [sum(device.predicted), sum(device.measured)]));
  const most = Math.min(1.25 * needed, Math.max(needed, ...used.map(({ budget }) => budget)));
  const kinds = PARTS.filter((part) =>
    used.some(({ predicted, measured: own }) => [...predicted, ...own].some(({ name }) => name === part)),
  );
  return (
    <figure class="card">
      <figcaption>
        <h3>{words.placement.memory}</h3>
        <ul class="legend">
          {kinds.map((part) => (
            <li key={part}>
              <i class={`swatch memory-${part}`} />
              {words.placement.part[part]}
            </li>
          ))}
        </ul>
      </figcaption>
      <p class="hint">{measured ? words.placement.memoryText : words.placement.notMeasured}</p>
      <div class="rows" aria-hidden="true">
        {used.map((device) => (
          <div class="row" key={device.rank}>
            <DeviceName device={device} />
            <svg aria-hidden="true" class="bar" viewBox={`0 0 1000 ${ROW}`} preserveAspectRatio="none" height={ROW}>
              <Stack parts={device.predicted} y={3} height={11} most={most} words={words} format={format} />
              <Stack parts={device.measured} y={16} height={11} most={most} words={words} format={format} />
              {device.budget > 0 && device.budget <= most && (
                <rect class="budget" x={(998 * device.budget) / most} y={0} width={2} height={ROW} />
              )}
            </svg>
            <span class="value">
              {format.bytes(sum(device.predicted))}
              {device.measured.length > 0 && <small>{format.bytes(sum(device.measured))}</small>}
            </span>
          </div>
        ))}
      </div>
      <MemoryTable devices={used} kinds={kinds} />
    </figure>
  );
}

interface StackProps {
  readonly parts: readonly MemoryPart[];
  readonly y: number;
  readonly height: number;
  readonly most: number;
  readonly words: Words;
  readonly format: Format;
}

function Stack({ parts, y, height, most, words, format }: StackProps) {
  let x = 0;
  return (
    <>
      {parts.map(({ name, bytes }) => {
        const width = (1000 * bytes) / most;
        const begin = x;
        x += width;
        return (
          <rect key={name} class={`memory-${name}`} x={begin} y={y} width={width} height={height}>
            <title>{`${words.placement.part[name]}: ${format.bytes(bytes)}`}</title>
          </rect>
        );
      })}
    </>
  );
}

function MemoryTable({
  devices,
  kinds,
}: {
  readonly devices: readonly PlacedDevice[];
  readonly kinds: readonly MemoryName[];
}) {
  const words = useWords();
  const format = useFormat();
  const row = ({ rank, budget }: PlacedDevice, which: string, parts: readonly MemoryPart[]) => [
    `${rank}, ${which}`,
    ...kinds.map((kind) => {
      const part = parts.find(({ name }) => name === kind);
      return part === undefined ? NONE : format.bytes(part.bytes);
    }),
    parts.length === 0 ? NONE : format.bytes(sum(parts)),
    budget > 0 ? format.bytes(budget) : NONE,
  ];
  return (
    <details>
      <summary>{words.table}</summary>
      <DataTable
        caption={words.placement.memory}
        head={[
          words.placement.rank,
          ...kinds.map((kind) => words.placement.part[kind]),
          words.placement.total,
          words.placement.budget,
        ]}
        rows={devices.flatMap((device) => [
          row(device, words.placement.predicted, device.predicted),
          row(device, words.placement.measured, device.measured),
        ])}
        numbers
      />
    </details>
  );
}

function sum(parts: readonly MemoryPart[]): number {
  return parts.reduce((total, { bytes }) => total + bytes, 0);
}
