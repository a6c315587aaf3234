import { useState } from "preact/hooks";
import type { Setting } from "../../src/serve/page/wire.ts";
import { useWords } from "../language.ts";
import { DataTable } from "../parts/data-table.tsx";
import { Empty } from "../parts/notice.tsx";

export function Settings({ settings }: { readonly settings: readonly Setting[] }) {
  const words = useWords();
  const [search, setSearch] = useState("");
  const known = settings.some(({ changed }) => changed === true);
  const [onlyChanged, setOnlyChanged] = useState(known);
  if (settings.length === 0) return <Empty>{words.settings.none}</Empty>;
  const wanted = search.trim().toLowerCase();
  const shown = settings.filter(
    ({ name, value, changed }) =>
      (changed === true || !onlyChanged) && `${name} ${value}`.toLowerCase().includes(wanted),
  );
  return (
    <>
      <div class="tools">
        <label>
          {words.settings.search}
          <input type="search" value={search} onInput={(event) => setSearch(event.currentTarget.value)} />
        </label>
        {known && (
          <label class="check">
            <input
              type="checkbox"
              checked={onlyChanged}
              onChange={(event) => setOnlyChanged(event.currentTarget.checked)}
            />
            {words.settings.onlyChanged}
          </label>
        )}
      </div>
      <div class="card">
        <DataTable
          caption={words.settings.title}
          head={[words.settings.name, words.settings.value]}
          rows={shown.map(({ name, value, changed }) => [
            <code key={name}>{name}</code>,
            <>
              <code class={changed === true ? "changed" : ""}>{value}</code>
              {changed === true && !onlyChanged && <span class="pill">{words.settings.changed}</span>}
            </>,
          ])}
        />
      </div>
    </>
  );
}
