import { createInterface } from "node:readline/promises";
import type { Logger } from "../../common/log.ts";
import type { Config } from "../../config/options.ts";
import { ChatHistory } from "../../coordinator/generation/conversation.ts";
import { withModel } from "../../coordinator/generation/sample.ts";

const HELP = "/clear forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops a reply.";
/** Tokens of a whole conversation that the plan leaves room for. */
const CONVERSATION_TOKENS = 4096;

/** Questions from stdin, replies to stdout as they come; with --json one {"text"} a line. */
export async function chatCommand(config: Config, log: Logger): Promise<number> {
  const options = { tokens: CONVERSATION_TOKENS + config.max_new_tokens, needsText: true };
  await withModel(config, log, options, async ({ conversation, template }) => {
    const history = new ChatHistory(template!);
    const interactive = process.stdin.isTTY === true && !config.json;
    const lines = createInterface({
      input: process.stdin,
      output: interactive ? process.stdout : undefined,
      prompt: "> ",
    });
    if (interactive) process.stdout.write(`${HELP}\n`);
    let replying: AbortController | null = null;
    lines.on("SIGINT", () => (replying === null ? lines.close() : replying.abort()));
    if (interactive) lines.prompt();
    for await (const line of lines) {
      const question = line.trim();
      if (question === "/exit") break;
      if (question === "/clear") history.clear();
      else if (question !== "") {
        replying = new AbortController();
        const show = (text: string) => {
          if (!config.json) process.stdout.write(text);
        };
        const { ids, text } = await conversation.reply(history.ask(question), show, replying.signal);
        replying = null;
        history.answered(text!);
        process.stdout.write(config.json ? `${JSON.stringify({ output_ids: ids, text })}\n` : "\n");
      }
      if (interactive) lines.prompt();
    }
  });
  return 0;
}
