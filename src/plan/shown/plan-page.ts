import { formatBytes } from "../../common/bytes.ts";
import type { Device } from "../devices.ts";
import type { Plan } from "../plan.ts";
import type { StrategyOutcome } from "./format-plan.ts";

export interface PageFacts {
  readonly title: string;
  readonly plan: Plan;
  readonly devices: readonly Device[];
  readonly layerNames: readonly string[];
  readonly comparison: readonly StrategyOutcome[];
  /** Tables as text, each with a heading. */
  readonly tables: readonly { readonly heading: string; readonly text: string }[];
}

const ROW = 34;
const LEFT = 250;
const WIDTH = 1040;
/** The parts of a device's memory, in the order of the bars. */
const PARTS = [
  ["weights", (m: Memory) => m.weights + m.weightCache, "#3b6ea8"],
  ["LoRA", (m: Memory) => m.lora, "#b0562f"],
  ["activations", (m: Memory) => m.activations, "#4c8c4a"],
  ["workspace", (m: Memory) => m.workspace + m.expansion + m.cache, "#8a6bb1"],
  ["driver", (m: Memory) => m.context, "#777777"],
] as const;
type Memory = Plan["devices"][number]["memory"];

/** A self-contained HTML page that shows placement, memory and strategies as pictures and tables. */
export function planPage({ title, plan, devices, layerNames, comparison, tables }: PageFacts): string {
  const predicted = plan.predicted;
  const step =
    predicted === null
      ? ""
      : `<p>${escaped(plan.strategy)}: ${predicted.stepTimeMs.toFixed(1)} ms a step, ${Math.round(predicted.tokensPerSecond)} tokens/s, ${(100 * predicted.bubble).toFixed(1)} % idle.</p>`;
  const texts = tables.map(({ heading, text }) => `<h2>${escaped(heading)}</h2><pre>${escaped(text)}</pre>`);
  return [
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
    `<title>${escaped(title)}</title><style>`,
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:68rem;padding:0 1rem;color:#1a1a1a;background:#fff}",
    "svg{width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:currentColor}pre{overflow-x:auto}",
    "@media(prefers-color-scheme:dark){body{color:#e8e8e8;background:#161616}}",
    `</style></head><body><h1>${escaped(title)}</h1>${step}`,
    `<h2>Layers by device</h2>${placementPicture(plan, devices, layerNames)}`,
    `<h2>Memory by device</h2>${memoryPicture(plan, devices)}`,
    ...(comparison.length === 0 ? [] : [`<h2>Time of a step by strategy</h2>${strategyPicture(comparison)}`]),
    ...texts,
    "</body></html>\n",
  ].join("\n");
}

function placementPicture(plan: Plan, devices: readonly Device[], layerNames: readonly string[]): string {
  const cell = (WIDTH - LEFT) / layerNames.length;
  const rows = plan.devices.map(({ device, segments }, row) => {
    const boxes = segments.map((index) => {
      const { firstLayer, lastLayer } = plan.segments[index]!;
      const [x, width] = [LEFT + firstLayer * cell, (lastLayer - firstLayer + 1) * cell];
      const names = `${layerNames[firstLayer]} … ${layerNames[lastLayer]}`;
      return `<rect x="${fixed(x)}" y="${row * ROW + 4}" width="${fixed(width - 1)}" height="${ROW - 10}" rx="3" fill="#3b6ea8"><title>${escaped(names)}</title></rect>`;
    });
    return label(devices, device, row) + boxes.join("");
  });
  return svg(plan.devices.length * ROW, "Which device holds which layers", rows.join(""));
}

function memoryPicture(plan: Plan, devices: readonly Device[]): string {
  const most = Math.max(1, ...plan.devices.map(({ memory }) => Math.max(memory.total, memory.budget)));
  const scale = (WIDTH - LEFT - 130) / most;
  const rows = plan.devices.map(({ device, memory }, row) => {
    let x = LEFT;
    const bars = PARTS.map(([name, bytes, colour]) => {
      const width = bytes(memory) * scale;
      const bar = `<rect x="${fixed(x)}" y="${row * ROW + 4}" width="${fixed(width)}" height="${ROW - 10}" fill="${colour}"><title>${name} ${formatBytes(bytes(memory))}</title></rect>`;
      x += width;
      return bar;
    });
    const limit = LEFT + memory.budget * scale;
    const mark = `<line x1="${fixed(limit)}" x2="${fixed(limit)}" y1="${row * ROW}" y2="${row * ROW + ROW - 2}" stroke="currentColor" stroke-dasharray="3 2"/>`;
    const text = `<text x="${fixed(Math.max(x, limit) + 6)}" y="${row * ROW + 20}">${formatBytes(memory.total)} of ${formatBytes(memory.budget)}</text>`;
    return label(devices, device, row) + bars.join("") + mark + text;
  });
  const legend = PARTS.map(
    ([name, , colour], i) =>
      `<rect x="${LEFT + i * 130}" y="${plan.devices.length * ROW + 6}" width="12" height="12" fill="${colour}"/><text x="${LEFT + i * 130 + 18}" y="${plan.devices.length * ROW + 16}">${name}</text>`,
  );
  return svg(plan.devices.length * ROW + 28, "What each device's memory holds", rows.join("") + legend.join(""));
}

/** A bar for each strategy: the part of a step in which devices compute, and the part in which they idle. */
function strategyPicture(comparison: readonly StrategyOutcome[]): string {
  const most = Math.max(1, ...comparison.map(({ plan }) => plan?.predicted?.stepTimeMs ?? 0));
  const rows = comparison.map(({ strategy, schedule, plan }, row) => {
    const name = `<text x="0" y="${row * ROW + 20}">${escaped(`${strategy}, ${schedule}`)}</text>`;
    const predicted = plan?.predicted ?? null;
    if (predicted === null) return `${name}<text x="${LEFT}" y="${row * ROW + 20}">does not fit</text>`;
    const whole = (predicted.stepTimeMs / most) * (WIDTH - LEFT - 170);
    const idle = whole * predicted.bubble;
    const text = `${predicted.stepTimeMs.toFixed(1)} ms, ${(100 * predicted.bubble).toFixed(1)} % idle`;
    return `${name}<rect x="${LEFT}" y="${row * ROW + 4}" width="${fixed(whole - idle)}" height="${ROW - 10}" fill="#4c8c4a"/><rect x="${fixed(LEFT + whole - idle)}" y="${row * ROW + 4}" width="${fixed(idle)}" height="${ROW - 10}" fill="#bbbbbb"/><text x="${fixed(LEFT + whole + 6)}" y="${row * ROW + 20}">${text}</text>`;
  });
  return svg(comparison.length * ROW, "Time of a step by strategy; grey: idle", rows.join(""));
}

function label(devices: readonly Device[], id: number, row: number): string {
  const device = devices.find((one) => one.id === id);
  const name = `${id}: ${device?.name ?? device?.kind ?? ""} ${device === undefined ? "" : `@ ${device.node}`}`;
  return `<text x="0" y="${row * ROW + 20}">${escaped(name)}</text>`;
}

function svg(height: number, title: string, content: string): string {
  return `<svg viewBox="0 0 ${WIDTH} ${height}" role="img" aria-label="${escaped(title)}">${content}</svg>`;
}

const fixed = (value: number) => value.toFixed(1);

function escaped(text: string): string {
  return text.replace(/[&<>"]/g, (mark) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[mark]!);
}
