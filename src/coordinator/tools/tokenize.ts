import type { Logger } from "../../common/log.ts";
import type { Columns } from "../../config/column-keys.ts";
import type { Config } from "../../config/options.ts";
import { lostText } from "../../data/dataset.ts";
import { encodeSets } from "../../data/encode.ts";
import { datasetError } from "../../data/readers/checks.ts";
import { readRows } from "../../data/readers/read.ts";
import { loadTokenizer } from "../../formats/tokenizer/load.ts";
import { readModelSpec } from "../../models/index.ts";
import { locateModel } from "../planning/named-models.ts";
import { type TemplateSettings, templatesOf } from "../planning/row-templates.ts";

export interface TokenizedRow {
  readonly ids: readonly number[];
  /** Only for rows that training would label. */
  readonly labels?: readonly number[];
  /** Only for rows with a label whose weight is not 1. */
  readonly loss_weights?: readonly number[];
}

/**
 * Rows of {"text"} as the tokenizer encodes them; rows of any other dataset as training will see them, with labels. The first row decides
 * which. Errors: PL_DATASET_INVALID, PL_TOKENIZER_INVALID, PL_TEMPLATE_INVALID; those of hub/ for a model's name.
 */
export async function* tokenizeFile(
  config: TemplateSettings & Pick<Config, "model" | "hub" | "template" | "input" | "columns" | "max_length">,
  log: Logger,
): AsyncGenerator<TokenizedRow> {
  const path = config.input!;
  const source = await locateModel(config, log);
  await source.fetchTokenizer();
  if (await holdsText(path, config.columns)) {
    const tokenizer = await loadTokenizer(source.dir);
    for await (const text of texts(path, config.columns)) yield { ids: tokenizer.encode(text, { addSpecials: true }) };
    return;
  }
  const spec = await readModelSpec(source.dir);
  const options = { maxLength: config.max_length, vocabSize: spec.shape.vocab };
  const templates = templatesOf(config, source.dir, log)(config.template);
  const set = { label: path, files: [path], weight: null, limit: null, columns: config.columns, ...templates };
  const { rows: dataset } = await encodeSets([set], options);
  const lost = lostText(dataset.statistics);
  if (lost !== null) log.warn(lost);
  for (let index = 0; index < dataset.size; index++) {
    const { tokens, labels, weights } = dataset.row(index);
    const weighted = weights?.some((weight) => weight !== 1) ?? false;
    yield { ids: [...tokens], labels: [...labels], ...(weighted ? { loss_weights: [...weights!] } : {}) };
  }
}

async function holdsText(path: string, columns: Columns): Promise<boolean> {
  for await (const row of readRows(path, columns)) return row.kind === "text";
  return false;
}

async function* texts(path: string, columns: Columns): AsyncGenerator<string> {
  let number = 0;
  for await (const row of readRows(path, columns)) {
    number++;
    if (row.kind !== "text") {
      throw datasetError(`${path}: row ${number} has no "text".`, 'Write every row as {"text": "…"}, as the first is.');
    }
    yield row.text;
  }
}
