import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import type { LogLine, LogPage } from "../../src/serve/page/wire.ts";
import { useFormat } from "../format.ts";
import { type LiveRun, useAnswer } from "../hooks.ts";
import { useWords } from "../language.ts";
import { Empty, Waiting } from "../parts/notice.tsx";
import { ask } from "../server.ts";

const LEVELS = ["debug", "info", "warn", "error"] as const;
type Level = (typeof LEVELS)[number];
const PAGE = 300;

export function Log({ run, live }: { readonly run: string; readonly live: LiveRun }) {
  const words = useWords();
  const [least, setLeast] = useState<Level>("debug");
  const [search, setSearch] = useState("");
  const [older, setOlder] = useState<readonly LogLine[]>([]);
  const { value, error } = useAnswer<LogPage>("page/log", { run, lines: PAGE }, live.revisions?.log);
  const box = useRef<HTMLElement>(null);
  /** Whoever is at the end stays there when lines come. */
  const atEnd = useRef(true);
  const newest = value?.lines.at(-1)?.seq;
  useLayoutEffect(() => {
    const own = box.current;
    if (own !== null && atEnd.current) own.scrollTop = own.scrollHeight;
  }, [newest, least, search]);
  useEffect(() => setOlder([]), [run]);
  if (value === null) return <Waiting error={error} />;
  const first = value.lines[0]?.seq ?? 0;
  // New lines push some out of the answer's front: those that are shown stay.
  const lines = [...older.filter(({ seq }) => seq < first), ...value.lines];
  if (lines.length === 0) return <Empty>{words.log.none}</Empty>;
  const wanted = search.trim().toLowerCase();
  const shown = lines.filter(
    ({ level, text }) => LEVELS.indexOf(level) >= LEVELS.indexOf(least) && text.toLowerCase().includes(wanted),
  );
  const more = async () => {
    const before = lines[0]!.seq;
    const page = await ask<LogPage>("page/log", { run, lines: PAGE, before });
    setOlder([...page.lines, ...lines.filter(({ seq }) => seq < first)]);
  };
  return (
    <>
      <div class="tools">
        <label>
          {words.log.level}
          <select value={least} onChange={(event) => setLeast(event.currentTarget.value as Level)}>
            {LEVELS.map((level) => (
              <option key={level} value={level}>
                {words.log.levels[level]}
              </option>
            ))}
          </select>
        </label>
        <label>
          {words.log.search}
          <input type="search" value={search} onInput={(event) => setSearch(event.currentTarget.value)} />
        </label>
      </div>
      <section
        class="card log"
        ref={box}
        // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reached by the keyboard
        tabIndex={0}
        aria-label={words.log.title}
        onScroll={({ currentTarget: { scrollTop, scrollHeight, clientHeight } }) => {
          atEnd.current = scrollTop + clientHeight > scrollHeight - 24;
        }}
      >
        {lines[0]!.seq > value.first && (
          <button type="button" onClick={() => void more()}>
            {words.log.older}
          </button>
        )}
        {shown.length === 0 && <p class="empty">{words.log.noMatch}</p>}
        <ol>
          {shown.map((line) => (
            <LogRow key={line.seq} line={line} />
          ))}
        </ol>
      </section>
    </>
  );
}

function LogRow({ line: { at, level, text } }: { readonly line: LogLine }) {
  const words = useWords();
  const format = useFormat();
  return (
    <li class={level}>
      <time dateTime={new Date(at).toISOString()} title={format.time(at)}>
        {format.clock(at)}
      </time>
      {(level === "warn" || level === "error") && <b>{words.log.levels[level]}</b>}
      <pre>{text}</pre>
    </li>
  );
}
