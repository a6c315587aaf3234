import type { ChatMessage } from "../../data/readers/messages.ts";
import type { RequestMessage } from "./requests.ts";

type Content = RequestMessage["content"];

/** A request's messages as chat templates take them: text in one piece, arguments of calls as objects. */
export function templateMessages(messages: readonly RequestMessage[]): ChatMessage[] {
  return messages.map((message): ChatMessage => {
    const content = textOf(message.content);
    const name = message.name == null ? {} : { name: message.name };
    switch (message.role) {
      case "developer":
        return { role: "system", content, ...name };
      case "tool":
        return { role: "tool", content, tool_call_id: message.tool_call_id, ...name };
      case "assistant": {
        const { tool_calls: calls, reasoning_content: reasoning } = message;
        return {
          role: "assistant",
          content,
          ...name,
          ...(reasoning == null ? {} : { reasoning_content: reasoning }),
          ...(calls == null || calls.length === 0
            ? {}
            : {
                tool_calls: calls.map((call) => ({
                  ...call,
                  function: { name: call.function.name, arguments: argumentsOf(call.function.arguments) },
                })),
              }),
        };
      }
      default:
        return { role: message.role, content, ...name };
    }
  });
}

function textOf(content: Content): string {
  if (content == null) return "";
  if (typeof content === "string") return content;
  return content.map((part) => (part.type === "text" ? part.text : part.refusal)).join("");
}

function argumentsOf(written: string): unknown {
  try {
    return JSON.parse(written);
  } catch {
    return written;
  }
}
