import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { isFile } from "../../common/files.ts";
import { check, readJson } from "./hf-config.ts";

/** The conversation format of a model whose files have no template, from its authors' published chat and fine-tuning code. */
export interface AuthorsFormat {
  readonly template: string;
  /** Tokens that the format needs and that no file defines, by id. */
  readonly tokens: readonly { readonly id: number; readonly content: string }[];
}

/** The authors' fine-tuning code ends a conversation with the end token alone. */
const END = "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}";

/**
 * ChatGLM3's tokenization_chatglm.py (build_single_message, build_chat_input): the prefix, then each role's token, "\n" and the text, both
 * encoded for themselves, so that SentencePiece puts its space in front of either. Tools go behind the system's text as indented JSON.
 */
const CHATGLM3 =
  "[gMASK]sop{% if tools and messages[0]['role'] != 'system' %}{{ raise_exception('ChatGLM3 takes tools beside a system message') }}{% endif %}" +
  "{% for message in messages %}<|{{ 'observation' if message['role'] == 'tool' else message['role'] }}|>{{ '\\n ' + message['content'] }}" +
  "{% if tools and loop.first %}{{ '\\n' + tools | tojson(indent=4) }}{% endif %}{% endfor %}" +
  `{% if add_generation_prompt %}<|assistant|>{% endif %}${END}`;
const CHATGLM3_ROLES = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"];

/** InternLM2's modeling_internlm2.py (build_inputs): ChatML behind BOS. */
const INTERNLM2 =
  "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/** MiniCPM's modeling_minicpm.py (chat) and finetune.py: the reply's mark stands behind each question. */
const MINICPM =
  "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '<用户>' + message['content'].strip() + '<AI>' }}" +
  `{% else %}{{ message['content'].strip() }}{% endif %}{% endfor %}${END}`;

/** Baichuan2's generation_utils.py (build_chat_input) and fine-tune.py: tokens of the generation's configuration in front of each turn. */
const baichuan = (user: string, assistant: string) =>
  "{% for message in messages %}" +
  "{% if message['role'] == 'system' %}{% if not loop.first %}{{ raise_exception('the system message comes first') }}{% endif %}" +
  `{% elif message['role'] == 'user' %}{{ ${JSON.stringify(user)} }}{% elif message['role'] == 'assistant' %}{{ ${JSON.stringify(assistant)} }}` +
  "{% else %}{{ raise_exception('Baichuan2 knows system, user and assistant') }}{% endif %}{{ message['content'] }}{% endfor %}" +
  `{% if add_generation_prompt %}{{ ${JSON.stringify(assistant)} }}{% endif %}${END}`;

const modelConfig = z.looseObject({ model_type: z.string().nullish(), _name_or_path: z.string().nullish() });
const generationConfig = z.looseObject({
  user_token_id: z.number().int().nonnegative().nullish(),
  assistant_token_id: z.number().int().nonnegative().nullish(),
});

/**
 * By the kind of tokenizer and the files beside it; null where the authors have no format (a base model). `pieces`: the vocabulary by id;
 * `known`: tokens that are defined already. Error: PL_TOKENIZER_INVALID.
 */
export async function authorsFormat(
  dir: string,
  name: string | null,
  pieces: readonly string[],
  known: (content: string) => boolean,
): Promise<AuthorsFormat | null> {
  const config = await read(dir, "config.json", modelConfig);
  if (name === "ChatGLMTokenizer") {
    if (!(await isChatGlm3(dir, config?._name_or_path ?? "", known))) return null;
    // Behind [MASK], [gMASK], [sMASK], sop and eop.
    return { template: CHATGLM3, tokens: CHATGLM3_ROLES.map((content, i) => ({ id: pieces.length + 5 + i, content })) };
  }
  if (name === "InternLM2Tokenizer" && known("<|im_start|>") && known("<|im_end|>")) {
    return { template: INTERNLM2, tokens: [] };
  }
  if (config?.model_type === "minicpm") return { template: MINICPM, tokens: [] };
  if (name !== "BaichuanTokenizer") return null;
  const { user_token_id: user, assistant_token_id: assistant } =
    (await read(dir, "generation_config.json", generationConfig)) ?? {};
  const [userToken, assistantToken] = [pieces[user ?? -1], pieces[assistant ?? -1]];
  if (userToken === undefined || assistantToken === undefined) return null;
  return {
    template: baichuan(userToken, assistantToken),
    tokens: [
      { id: user!, content: userToken },
      { id: assistant!, content: assistantToken },
    ],
  };
}

/** ChatGLM2 has the same class and vocabulary but another format, so the files must tell which it is. Their code is read, never run. */
async function isChatGlm3(dir: string, origin: string, known: (content: string) => boolean): Promise<boolean> {
  if (known("<|observation|>") || /chatglm3/i.test(origin)) return true;
  const code = join(dir, "tokenization_chatglm.py");
  return (await isFile(code)) && (await readFile(code, "utf8")).includes("<|observation|>");
}

async function read<T extends z.ZodType>(dir: string, file: string, schema: T): Promise<z.infer<T> | null> {
  const path = join(dir, file);
  return (await isFile(path)) ? check(schema, path, await readJson(path)) : null;
}
