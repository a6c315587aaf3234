import type { LinkView, NodeView } from "../../src/serve/page/wire.ts";
import { NONE, useFormat } from "../format.ts";
import { useWords } from "../language.ts";
import { DataTable } from "../parts/data-table.tsx";
import { Empty } from "../parts/notice.tsx";

interface NodesProps {
  readonly nodes: readonly NodeView[];
  readonly links: readonly LinkView[];
}

export function Nodes({ nodes, links }: NodesProps) {
  const words = useWords();
  if (nodes.length === 0) return <Empty>{words.nodes.none}</Empty>;
  return (
    <>
      <h3>{words.nodes.nodes}</h3>
      <ul class="nodes">
        {nodes.map((node) => (
          <NodeCard key={node.name} node={node} />
        ))}
      </ul>
      <h3>{words.nodes.links}</h3>
      {links.length === 0 ? <Empty>{words.nodes.noLinks}</Empty> : <Links links={links} />}
    </>
  );
}

function NodeCard({
  node: { name, devices, freeMemoryBytes, freeDiskBytes, clockSkewMs },
}: {
  readonly node: NodeView;
}) {
  const words = useWords();
  const format = useFormat();
  const facts: [string, string][] = [
    ...(freeMemoryBytes === null ? [] : [[words.nodes.freeMemory, format.bytes(freeMemoryBytes)] as [string, string]]),
    ...(freeDiskBytes === null ? [] : [[words.nodes.freeDisk, format.bytes(freeDiskBytes)] as [string, string]]),
    ...(clockSkewMs === null
      ? []
      : [[words.nodes.clock, words.nodes.seconds(format.number(clockSkewMs / 1000))] as [string, string]]),
  ];
  return (
    <li class="card">
      <h4>{name}</h4>
      <ul class="devices">
        {devices.map(({ rank, device, name: kind, memoryBytes }) => (
          <li key={rank}>
            <b>{words.timeline.rank(rank)}</b> {device} <span class="muted">{kind}</span>
            <span class="muted">{memoryBytes > 0 ? format.bytes(memoryBytes) : ""}</span>
          </li>
        ))}
      </ul>
      {facts.length > 0 && (
        <dl class="facts small">
          {facts.map(([label, value]) => (
            <div key={label}>
              <dt>{label}</dt>
              <dd>{value}</dd>
            </div>
          ))}
        </dl>
      )}
    </li>
  );
}

function Links({ links }: { readonly links: readonly LinkView[] }) {
  const words = useWords();
  const format = useFormat();
  const rate = ({ step }: LinkView) => (step === null || step.ms <= 0 ? null : (1000 * step.bytes) / step.ms);
  const fastest = Math.max(1, ...links.map((link) => rate(link) ?? 0));
  const { nodes } = words;
  return (
    <div class="card">
      <DataTable
        caption={nodes.links}
        lines
        head={[nodes.from, nodes.to, nodes.over, nodes.latency, nodes.speed, nodes.inStep, nodes.rate]}
        rows={links.map((link) => {
          const { from, to, kind, probe, step } = link;
          const speed = rate(link);
          return [
            words.timeline.rank(from),
            words.timeline.rank(to),
            kind,
            probe === null ? NONE : format.ms(probe.latencyMs),
            probe === null ? NONE : `${format.bytes(probe.bytesPerSecond)}/s`,
            step === null
              ? NONE
              : nodes.messages(format.count(step.messages), format.bytes(step.bytes / step.messages)),
            speed === null ? (
              NONE
            ) : (
              <span class="meter" key={`${from} ${to}`}>
                <svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">
                  <rect class="rail" width={100} height={8} />
                  <rect class="fill" width={(100 * speed) / fastest} height={8} />
                </svg>
                {format.bytes(speed)}/s
              </span>
            ),
          ];
        })}
      />
      <p class="hint">{nodes.rateText}</p>
    </div>
  );
}
