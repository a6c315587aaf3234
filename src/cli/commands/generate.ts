import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import { answerPrompts } from "../../coordinator/generation/answer-prompts.ts";
import { type SamplingSession, withModel } from "../../coordinator/generation/sample.ts";

/** Longest prompt in text that a plan leaves room for; ready ids are counted. */
const PROMPT_TOKENS = 2048;

export async function generateCommand(config: Config, log: Logger): Promise<number> {
  if (config.input !== null) {
    await answerPrompts(config, log);
    return 0;
  }
  const tokens = (config.prompt_ids?.length ?? PROMPT_TOKENS) + config.max_new_tokens;
  await withModel(config, log, { tokens, needsText: config.prompt_ids === null }, async (session) => {
    const prompt = config.prompt_ids ?? encodePrompt(session, config);
    const reply = await session.conversation.reply(prompt, (text) => {
      if (!config.json) process.stdout.write(text);
    });
    if (config.json) {
      process.stdout.write(`${JSON.stringify({ prompt_ids: prompt, output_ids: reply.ids, text: reply.text })}\n`);
    } else {
      process.stdout.write(reply.text === null ? `${reply.ids.join(" ")}\n` : "\n");
    }
  });
  return 0;
}

function encodePrompt({ tokenizer, template }: SamplingSession, config: Config): number[] {
  const text = config.prompt!;
  if (config.raw) return tokenizer!.encode(text, { addSpecials: true });
  return template!.encodePrompt([{ role: "user", content: text }]);
}
