import { EventFile } from "../../../formats/tensorboard.ts";
import type { LogEntry } from "../checkpoints/trainer-state.ts";
import { Background, type Observer } from "./observer.ts";

/** Writes log entries to an event file, under the Trainer's tags: train/loss, eval/loss, train/learning_rate. */
export class TensorboardObserver implements Observer {
  readonly #file: EventFile;
  readonly #written: Background;

  private constructor(file: EventFile, warn: (text: string) => void) {
    this.#file = file;
    this.#written = new Background((message) => warn(`the event file can't be written: ${message}`));
  }

  static async open(dir: string, warn: (text: string) => void): Promise<TensorboardObserver> {
    return new TensorboardObserver(await EventFile.create(dir), warn);
  }

  log({ step, ...values }: LogEntry): void {
    const tagged = Object.entries(values).map(([key, value]) => [tag(key), value] as const);
    this.#written.add(() => this.#file.scalars(step, Object.fromEntries(tagged)));
  }

  async close(): Promise<void> {
    this.#written.add(() => this.#file.close());
    await this.#written.done();
  }
}

function tag(key: string): string {
  if (key.startsWith("eval_")) return `eval/${key.slice(5)}`;
  return `train/${key.replace(/^train_/, "")}`;
}
