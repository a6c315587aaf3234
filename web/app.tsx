import { useEffect, useRef, useState } from "preact/hooks";
import type { RunList, RunSummary } from "../src/serve/page/wire.ts";
import { useAnswer, useEvery, useLiveRun } from "./hooks.ts";
import { firstLanguage, keepLanguage, type Language, LanguageContext, TAGS, useWords } from "./language.ts";
import { Choices } from "./parts/choices.tsx";
import { KeyForm } from "./parts/key-form.tsx";
import { Waiting } from "./parts/notice.tsx";
import { RunPage } from "./parts/run-page.tsx";
import { hashOf, useRoute, VIEWS, type View } from "./route.ts";
import { applyTheme, ColoursContext, firstTheme, type Theme } from "./theme.ts";

/** Runs come and go. */
const LIST_MS = 5_000;

export function App() {
  const [language, setLanguage] = useState<Language>(firstLanguage);
  const [theme, setTheme] = useState<Theme>(firstTheme);
  const dark = useMedia("(prefers-color-scheme: dark)");
  // Before what is drawn below reads the colours.
  applyTheme(theme, dark);
  useEffect(() => {
    document.documentElement.lang = TAGS[language];
    keepLanguage(language);
  }, [language]);
  return (
    <LanguageContext.Provider value={language}>
      <ColoursContext.Provider value={`${theme} ${dark}`}>
        <Frame choices={<Choices {...{ language, theme }} onLanguage={setLanguage} onTheme={setTheme} />} />
      </ColoursContext.Provider>
    </LanguageContext.Provider>
  );
}

function Frame({ choices }: { readonly choices: preact.ComponentChildren }) {
  const words = useWords();
  const route = useRoute();
  const [again, setAgain] = useState(0);
  const { value: list, error } = useAnswer<RunList>("page/runs", {}, again);
  useEvery(LIST_MS, () => setAgain((count) => count + 1));
  const run = chosenRun(list, route.run);
  const live = useLiveRun(run?.id ?? null, () => setAgain((count) => count + 1));
  const view = route.view ?? (list !== null && list.runs.length > 1 ? "compare" : "curves");
  const open = (id: string, to: View = "curves") => {
    location.hash = hashOf(to, id);
  };
  useEffect(() => {
    document.title = [run?.name, words.view[view], "pipelora"].filter(Boolean).join(" · ");
  }, [run?.name, view, words]);
  useFocusOnView(view);
  return (
    <>
      <button type="button" class="skip" onClick={focusView}>
        {words.skip}
      </button>
      <header>
        <h1>
          <img src="icon.svg" alt="" width={24} height={24} /> pipelora
        </h1>
        {list !== null && run !== undefined && (
          <RunChoice list={list} run={run} open={(id) => open(id, view === "compare" ? "curves" : view)} />
        )}
        {choices}
      </header>
      {run !== undefined && <Views view={view} run={run} several={list !== null && list.runs.length > 1} />}
      <main>
        {error?.status === 401 ? (
          <KeyForm onKey={() => setAgain((count) => count + 1)} />
        ) : list === null ? (
          <Waiting error={error} />
        ) : run === undefined ? (
          <p class="card empty">{words.noRuns}</p>
        ) : (
          <RunPage {...{ view, list, live, open }} summary={run} />
        )}
        {list !== null && list.leftOut > 0 && <p class="hint">{words.leftOut(list.leftOut)}</p>}
      </main>
      <footer>{list !== null && `pipelora ${list.version} · ${list.folder}`}</footer>
    </>
  );
}

/** The one that was asked for, else the first that is under way, else the first. */
function chosenRun(list: RunList | null, asked: string | null): RunSummary | undefined {
  const runs = list?.runs ?? [];
  return runs.find(({ id }) => id === asked) ?? runs.find(({ status }) => status === "running") ?? runs[0];
}

interface RunChoiceProps {
  readonly list: RunList;
  readonly run: RunSummary;
  readonly open: (run: string) => void;
}

function RunChoice({ list, run, open }: RunChoiceProps) {
  const words = useWords();
  if (list.runs.length === 1) return <p class="run-name">{run.name}</p>;
  return (
    <label class="run-name">
      <span class="heard">{words.run}</span>
      <select value={run.id} title={words.run} onChange={(event) => open(event.currentTarget.value)}>
        {list.runs.map(({ id, name }) => (
          <option key={id} value={id}>
            {name}
          </option>
        ))}
      </select>
    </label>
  );
}

function Views({ view, run, several }: { readonly view: View; readonly run: RunSummary; readonly several: boolean }) {
  const words = useWords();
  const current = useRef<HTMLAnchorElement>(null);
  useEffect(() => current.current?.scrollIntoView({ block: "nearest", inline: "center" }), [view]);
  return (
    <nav aria-label={words.views}>
      {VIEWS.filter((one) => several || one !== "compare").map((one) => (
        <a
          key={one}
          ref={one === view ? current : null}
          href={hashOf(one, run.id)}
          aria-current={one === view ? "page" : undefined}
        >
          {words.view[one]}
        </a>
      ))}
    </nav>
  );
}

/** Whoever goes to another view by the keyboard, or hears it, goes on at its heading. */
function useFocusOnView(view: View): void {
  const before = useRef(view);
  useEffect(() => {
    if (before.current === view) return;
    before.current = view;
    focusView();
  }, [view]);
}

function focusView(): void {
  document.getElementById("view")?.focus();
}

function useMedia(query: string): boolean {
  const [matches, setMatches] = useState(() => matchMedia(query).matches);
  useEffect(() => {
    const list = matchMedia(query);
    const changed = () => setMatches(list.matches);
    list.addEventListener("change", changed);
    return () => list.removeEventListener("change", changed);
  }, [query]);
  return matches;
}
