import { useEffect, useRef, useState } from "preact/hooks";
import type { Replies } from "../../src/serve/page/wire.ts";
import { useFormat } from "../format.ts";
import { type LiveRun, useAnswer } from "../hooks.ts";
import { useWords } from "../language.ts";
import { Empty } from "../parts/notice.tsx";
import { events, request } from "../server.ts";

interface Message {
  readonly role: "user" | "assistant";
  readonly text: string;
  /** Updates that the weights had that answered. */
  readonly step: number | null;
  readonly end: "under way" | "whole" | "cut" | "stopped" | { readonly failure: string };
}

/** Of a stream of /v1/chat/completions. */
interface Chunk {
  readonly choices?: readonly {
    readonly delta?: { readonly content?: string };
    readonly finish_reason?: string | null;
  }[];
  readonly training_step?: number;
  readonly error?: { readonly message: string };
}

interface ChatProps {
  readonly run: string;
  readonly live: LiveRun;
  /** Whether /v1 answers here, as this run. */
  readonly answers: boolean;
}

export function Chat({ run, live, answers }: ChatProps) {
  const words = useWords();
  return (
    <>
      <h3>{words.chat.title}</h3>
      {answers ? <Conversation run={run} /> : <Empty>{words.chat.absent}</Empty>}
      <h3>{words.chat.samples}</h3>
      <Samples run={run} again={live.revisions?.replies} />
    </>
  );
}

function Conversation({ run }: Pick<ChatProps, "run">) {
  const words = useWords();
  const [messages, setMessages] = useState<readonly Message[]>([]);
  const [draft, setDraft] = useState("");
  const [system, setSystem] = useState("");
  const [tokens, setTokens] = useState(256);
  const [temperature, setTemperature] = useState(0.7);
  const asking = useRef<AbortController | null>(null);
  const end = useRef<HTMLDivElement>(null);
  const busy = messages.at(-1)?.end === "under way";
  useEffect(() => () => asking.current?.abort(), []);
  useEffect(() => end.current?.scrollIntoView({ block: "nearest" }), [messages]);

  const send = async () => {
    const text = draft.trim();
    if (text === "" || busy) return;
    const asked: Message[] = [...messages, { role: "user", text, step: null, end: "whole" }];
    const change = (reply: Partial<Message>) =>
      setMessages((now) => [...now.slice(0, -1), { ...now.at(-1)!, ...reply }]);
    setDraft("");
    setMessages([...asked, { role: "assistant", text: "", step: null, end: "under way" }]);
    const own = new AbortController();
    asking.current = own;
    try {
      const model = await modelOf(run, words.chat.ended, own.signal);
      await answer({ model, messages: asked, system, tokens, temperature }, change, own.signal);
    } catch (error) {
      change({ end: own.signal.aborted ? "stopped" : { failure: (error as Error).message } });
    }
  };
  return (
    <div class="card chat">
      <p class="hint">{words.chat.text}</p>
      <section class="messages" aria-label={words.chat.conversation} aria-live="polite" aria-busy={busy}>
        {messages.map((message, at) => (
          <Bubble key={at} message={message} />
        ))}
        <div ref={end} />
      </section>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void send();
        }}
      >
        <label>
          <span class="heard">{words.chat.message}</span>
          <textarea
            rows={3}
            value={draft}
            placeholder={words.chat.message}
            onInput={(event) => setDraft(event.currentTarget.value)}
            onKeyDown={(event) => {
              // While a Chinese word is being composed, Enter ends the word.
              if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
              event.preventDefault();
              void send();
            }}
          />
        </label>
        <div class="tools">
          <button type="submit" class="main" disabled={busy || draft.trim() === ""}>
            {words.chat.send}
          </button>
          {busy && (
            <button type="button" onClick={() => asking.current?.abort()}>
              {words.chat.stop}
            </button>
          )}
          {messages.length > 0 && !busy && (
            <button type="button" onClick={() => setMessages([])}>
              {words.chat.clear}
            </button>
          )}
          <span class="hint">{words.chat.enter}</span>
        </div>
        <details>
          <summary>{words.chat.options}</summary>
          <div class="options">
            <label class="wide">
              {words.chat.system}
              <textarea rows={2} value={system} onInput={(event) => setSystem(event.currentTarget.value)} />
            </label>
            <NumberOption label={words.chat.tokens} min={1} max={32768} value={tokens} take={setTokens} />
            <NumberOption
              label={words.chat.temperature}
              min={0}
              max={2}
              step={0.1}
              value={temperature}
              take={setTemperature}
            />
          </div>
        </details>
      </form>
    </div>
  );
}

function Bubble({ message: { role, text, step, end } }: { readonly message: Message }) {
  const words = useWords();
  const format = useFormat();
  const notes = [
    ...(step === null ? [] : [words.chat.after(format.count(step))]),
    ...(end === "under way" && text === "" ? [words.chat.waiting] : []),
    ...(end === "stopped" ? [words.chat.stopped] : []),
    ...(end === "cut" ? [words.chat.cut] : []),
  ];
  return (
    <article class={`bubble ${role}`}>
      <h4>{role === "user" ? words.chat.you : words.chat.model}</h4>
      {text !== "" && <p>{text}</p>}
      {typeof end === "object" && <p class="bad">{words.failed(end.failure)}</p>}
      {notes.length > 0 && <small>{notes.join(" · ")}</small>}
    </article>
  );
}

interface Question {
  readonly model: string;
  readonly messages: readonly Message[];
  readonly system: string;
  readonly tokens: number;
  readonly temperature: number;
}

/** The model that answers for a run: its adapter's name, or the only one; `ended` words the error that none does. */
async function modelOf(run: string, ended: (names: string) => string, signal: AbortSignal): Promise<string> {
  const models = (await (await request("v1/models", { signal })).json()) as { data: readonly { id: string }[] };
  const found = models.data.find(({ id }) => id === run) ?? (models.data.length === 1 ? models.data[0] : undefined);
  if (found === undefined) throw new Error(ended(models.data.map(({ id }) => id).join(", ")));
  return found.id;
}

/** Streams the answer to `messages`. Errors: ServerError, what the stream tells, the signal's reason. */
async function answer(
  { model, messages, system, tokens, temperature }: Question,
  change: (reply: Partial<Message>) => void,
  signal: AbortSignal,
): Promise<void> {
  const body = {
    ...{ model, stream: true },
    ...(Number.isFinite(temperature) ? { temperature } : {}),
    ...(Number.isInteger(tokens) ? { max_tokens: tokens } : {}),
    messages: [
      ...(system.trim() === "" ? [] : [{ role: "system", content: system }]),
      ...messages.map(({ role, text }) => ({ role, content: text })),
    ],
  };
  let text = "";
  let cut = false;
  for await (const { data } of events(await request("v1/chat/completions", { body, signal }))) {
    if (data === "[DONE]") break;
    const { choices, training_step: step, error } = JSON.parse(data) as Chunk;
    if (error !== undefined) throw new Error(error.message);
    text += choices?.[0]?.delta?.content ?? "";
    cut ||= choices?.[0]?.finish_reason === "length";
    change({ text, ...(step === undefined ? {} : { step }) });
  }
  change({ end: cut ? "cut" : "whole" });
}

function Samples({ run, again }: { readonly run: string; readonly again: unknown }) {
  const words = useWords();
  const format = useFormat();
  const { value } = useAnswer<Replies>("page/replies", { run }, again);
  if (value === null || value.replies.length === 0) return <Empty>{words.chat.noSamples}</Empty>;
  const steps = [...new Set(value.replies.map(({ step }) => step))].reverse();
  return (
    <div class="card samples">
      {steps.map((step) => (
        <section key={step}>
          <h4>
            {words.step} {format.count(step)}
          </h4>
          <dl>
            {value.replies
              .filter((reply) => reply.step === step)
              .map(({ prompt, text }, at) => (
                <div key={at}>
                  <dt>{prompt}</dt>
                  <dd>{text === "" ? "∅" : text}</dd>
                </div>
              ))}
          </dl>
        </section>
      ))}
      {value.leftOut > 0 && <p class="hint">{words.chat.olderSamples(value.leftOut)}</p>}
    </div>
  );
}

interface NumberOptionProps {
  readonly label: string;
  readonly min: number;
  readonly max: number;
  readonly step?: number;
  readonly value: number;
  take(value: number): void;
}

function NumberOption({ label, take, ...input }: NumberOptionProps) {
  return (
    <label>
      {label}
      <input type="number" {...input} onInput={(event) => take(event.currentTarget.valueAsNumber)} />
    </label>
  );
}
