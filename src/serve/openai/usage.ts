import type { Reply } from "../../generation/reply.ts";
import type { ServedModel } from "../service.ts";

/** Tokens of prompts and replies, end tokens included. */
export function usage(prompts: readonly (readonly number[])[], done: readonly Pick<Reply, "ids">[]) {
  const prompt = prompts.reduce((sum, { length }) => sum + length, 0);
  const completion = done.reduce((sum, { ids }) => sum + ids.length, 0);
  return { prompt_tokens: prompt, completion_tokens: completion, total_tokens: prompt + completion };
}

/** With weights in training: after how many steps they gave the answer. */
export function fingerprint(model: ServedModel): { system_fingerprint: string | null; training_step?: number } {
  const step = model.step();
  return step === null ? { system_fingerprint: null } : { system_fingerprint: `step-${step}`, training_step: step };
}
