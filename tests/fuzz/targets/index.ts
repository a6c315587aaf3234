import type { FuzzTarget } from "../target.ts";
import { chatTemplate } from "./chat-templates.ts";
import { checkpoint } from "./checkpoint.ts";
import { DATASETS } from "./datasets.ts";
import { MODEL_FILES } from "./model-files.ts";
import { PEERS } from "./peers.ts";
import { rankRequests } from "./rank-requests.ts";
import { TOKENIZERS } from "./tokenizers.ts";
import { yaml } from "./yaml.ts";

export const TARGETS: readonly FuzzTarget[] = [
  ...MODEL_FILES,
  checkpoint,
  ...DATASETS,
  ...TOKENIZERS,
  chatTemplate,
  yaml,
  ...PEERS,
  rankRequests,
];
