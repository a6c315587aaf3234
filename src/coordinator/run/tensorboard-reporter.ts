import { EventFile } from "../../formats/tensorboard.ts";
import type { Reporter, Sample } from "./reporter.ts";
import type { Saved } from "./run-files.ts";

/** Writes log entries to an event file too, under the Trainer's tags: train/loss, eval/loss, train/learning_rate. */
export class TensorboardReporter implements Reporter {
  readonly #inner: Reporter;
  readonly #file: EventFile;
  #written: Promise<void> = Promise.resolve();
  #failed = false;

  private constructor(inner: Reporter, file: EventFile) {
    this.#inner = inner;
    this.#file = file;
  }

  static async open(inner: Reporter, dir: string): Promise<TensorboardReporter> {
    return new TensorboardReporter(inner, await EventFile.create(dir));
  }

  log(...[entry]: Parameters<Reporter["log"]>): void {
    this.#inner.log(entry);
    const { step, ...values } = entry;
    const tagged = Object.entries(values).map(([key, value]) => [tag(key), value] as const);
    this.#write(() => this.#file.scalars(step, Object.fromEntries(tagged)));
  }

  samples(samples: readonly Sample[], step: number): void {
    this.#inner.samples(samples, step);
    // As Markdown, which TensorBoard shows.
    const texts = samples.map(({ prompt, reply }) => `${quoted(prompt)}\n\n${indented(reply)}`);
    this.#write(() => this.#file.texts(step, Object.fromEntries(texts.map((text, at) => [`samples/${at}`, text]))));
  }

  #write(write: () => Promise<void>): void {
    this.#written = this.#written.then(write).catch((error: Error) => {
      // A full disk costs these curves, never the run.
      if (!this.#failed) this.#inner.note(`the event file can't be written: ${error.message}`);
      this.#failed = true;
    });
  }

  plan(...args: Parameters<Reporter["plan"]>): void {
    this.#inner.plan(...args);
  }

  preflight(...args: Parameters<Reporter["preflight"]>): void {
    this.#inner.preflight(...args);
  }

  note(text: string): void {
    this.#inner.note(text);
  }

  step(...args: Parameters<Reporter["step"]>): void {
    this.#inner.step(...args);
  }

  predictions(...args: Parameters<Reporter["predictions"]>): void {
    this.#inner.predictions(...args);
  }

  saved(saved: Saved, step: number): void {
    this.#inner.saved(saved, step);
  }

  end(summary: Readonly<Record<string, unknown>>): void {
    this.#inner.end(summary);
  }

  async close(): Promise<void> {
    await this.#written;
    await this.#file
      .close()
      .catch((error: Error) => this.#inner.note(`the event file can't be closed: ${error.message}`));
  }
}

const quoted = (text: string) => text.replaceAll(/^/gm, "> ");
const indented = (text: string) => text.replaceAll(/^/gm, "    ");

function tag(key: string): string {
  if (key.startsWith("eval_")) return `eval/${key.slice(5)}`;
  return `train/${key.replace(/^train_/, "")}`;
}
