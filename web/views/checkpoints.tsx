import type { CheckpointView } from "../../src/serve/page/wire.ts";
import { useFormat } from "../format.ts";
import { useWords } from "../language.ts";
import { DataTable } from "../parts/data-table.tsx";
import { Empty } from "../parts/notice.tsx";

export function Checkpoints({ checkpoints }: { readonly checkpoints: readonly CheckpointView[] }) {
  const words = useWords();
  const format = useFormat();
  if (checkpoints.length === 0) return <Empty>{words.checkpoints.none}</Empty>;
  return (
    <div class="card">
      <DataTable
        caption={words.checkpoints.title}
        head={[words.checkpoints.name, words.step, words.checkpoints.saved, words.checkpoints.size]}
        rows={checkpoints.map(({ name, step, savedAt, bytes, best }) => [
          <>
            <code>{name}</code> {best && <span class="pill good">{words.checkpoints.best}</span>}
          </>,
          format.count(step),
          format.time(savedAt),
          bytes === null ? <span class="muted">{words.checkpoints.gone}</span> : format.bytes(bytes),
        ])}
      />
    </div>
  );
}
