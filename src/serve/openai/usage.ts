import type { Reply } from "../../generation/reply.ts";
import type { Service } from "../service.ts";

/** Tokens of prompts and replies, end tokens included. */
export function usage(prompts: readonly (readonly number[])[], done: readonly Pick<Reply, "ids">[]) {
  const prompt = prompts.reduce((sum, { length }) => sum + length, 0);
  const completion = done.reduce((sum, { ids }) => sum + ids.length, 0);
  return { prompt_tokens: prompt, completion_tokens: completion, total_tokens: prompt + completion };
}

/** Of weights in training, which answer it was: those after so many steps. */
export function fingerprint(service: Service): { system_fingerprint: string | null; training_step?: number } {
  const step = service.step();
  return step === null ? { system_fingerprint: null } : { system_fingerprint: `step-${step}`, training_step: step };
}
