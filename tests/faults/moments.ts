import { watch } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import type { Cast } from "./cast.ts";
import { between, type Case, choose, wholeBetween } from "./drawing.ts";
import { EVAL_STEPS, LAST_STEP, SAVE_STEPS } from "./settings.ts";

/** A process has said, or a file has shown, that the moment has begun; then a drawn part of the moment passes. */
export async function momentOf(
  { moment, draw, kind }: Case,
  cast: Cast,
  outputDir: string,
  signal: AbortSignal,
): Promise<void> {
  const { coordinator } = cast;
  const later = (mostMs: number) => pass(draw("jitter") * mostMs);
  switch (moment) {
    case "join":
      // Local workers exist before they join; of nodes, the first has joined and others are on their way.
      if (cast.controlLinks().length > 0) await coordinator.says((line) => line.includes(" joined"), signal);
      else while (cast.ranks().length === 0 && !signal.aborted) await sleep(5);
      return later(400);
    case "load":
      await coordinator.says((line) => line.includes('"event":"plan"'), signal);
      return later(60);
    case "forward":
    case "backward":
    case "update":
      return stepPart(moment, drawnStep(draw), draw("jitter"), cast, signal);
    case "save":
      await saving(outputDir, SAVE_STEPS * wholeBetween(1, LAST_STEP / SAVE_STEPS, draw("save")), signal);
      return later(25);
    case "eval": {
      const step = EVAL_STEPS * wholeBetween(1, LAST_STEP / EVAL_STEPS, draw("evaluation"));
      return later(await stepEnd(cast, step, signal));
    }
    case "resume":
      // Of what resumes: it has planned and loads; or it has read the checkpoint, and steps.
      await coordinator.says(
        (line) => line.includes(draw("resumed") < 0.5 ? '"event":"plan"' : "resumed after step"),
        signal,
      );
      return later(60);
    case "finish":
      await stepEnd(cast, LAST_STEP, signal);
      return later(kind === "each node" ? 400 : 250);
  }
}

function drawnStep(draw: Case["draw"]): number {
  // What the driver hears it hears some steps late.
  return wholeBetween(1, LAST_STEP - 6, draw("step"));
}

/** Waits for the event that ends a step. Resolves with its milliseconds. */
async function stepEnd(cast: Cast, step: number, signal: AbortSignal): Promise<number> {
  const line = await cast.coordinator.says((text) => text.includes(`"event":"step","step":${step},`), signal);
  return (JSON.parse(line) as { stepMs: number }).stepMs;
}

/**
 * Of the step after `step`. Its request carries the update of the one before: that comes first. Where tensors go through a proxy, the
 * first activation or gradient tells of forward or backward; else it is a part of the step's time.
 */
async function stepPart(
  part: "forward" | "backward" | "update",
  step: number,
  jitter: number,
  cast: Cast,
  signal: AbortSignal,
): Promise<void> {
  const stepMs = await stepEnd(cast, step, signal);
  const links = cast.tensorLinks();
  if (part === "update") return pass(jitter * stepMs * 0.1);
  if (links.length === 0)
    return pass(stepMs * (part === "forward" ? between(0.1, 0.45, jitter) : between(0.5, 0.95, jitter)));
  // What the first node sends are activations, what the last one sends are gradients.
  await (part === "forward" ? links[0]! : links.at(-1)!).traffic("down", signal);
  return pass(jitter * 3);
}

/** Resolves when the folder appears in which checkpoint-`step` is written. */
function saving(outputDir: string, step: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const watcher = watch(outputDir, (_event, name) => {
      if (name?.startsWith(`.checkpoint-${step}-`) !== true) return;
      watcher.close();
      resolve();
    });
    signal.addEventListener("abort", () => watcher.close());
  });
}

/** Milliseconds, exactly where they are few: a timer has no parts of one. */
async function pass(ms: number): Promise<void> {
  const until = performance.now() + ms;
  if (ms > 4) await sleep(ms - 2);
  while (performance.now() < until) await new Promise((resolve) => setImmediate(resolve));
}

/** A step at which the run that is to be resumed is stopped: it has saved. */
export async function stoppingPoint({ draw }: Case, cast: Cast, signal: AbortSignal): Promise<void> {
  const step = choose([...Array(LAST_STEP - SAVE_STEPS * 2).keys()], draw("stop")) + SAVE_STEPS * 2;
  await stepEnd(cast, step, signal);
}
