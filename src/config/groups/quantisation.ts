import { z } from "zod";
import { FLOAT_DTYPES } from "../../common/dtype.ts";
import { INT8_THRESHOLD, QUANT_TYPES } from "../../common/quantization.ts";
import { choice, flag, oneOrMore, option, optional, QUANTIZES, RUNS, TRAINS } from "./vocabulary.ts";

export const quantisationOptions = {
  load_in_4bit: option(
    "boolean",
    "Quantisation",
    QUANTIZES,
    flag(),
    "Hold the blocks' linear weights in 4 bits, quantised while loading.",
  ),
  load_in_8bit: option(
    "boolean",
    "Quantisation",
    QUANTIZES,
    flag(),
    "Hold the blocks' linear weights in 8 bits (LLM.int8()), quantised while loading.",
  ),
  bnb_4bit_quant_type: option(
    "string",
    "Quantisation",
    QUANTIZES,
    choice(QUANT_TYPES).default("fp4"),
    "The 4-bit code; nf4 is the better one for trained weights.",
    "NAME",
  ),
  bnb_4bit_use_double_quant: option(
    "boolean",
    "Quantisation",
    QUANTIZES,
    flag(),
    "Quantise the 4-bit blocks' scales too.",
  ),
  bnb_4bit_compute_dtype: option(
    "string",
    "Quantisation",
    QUANTIZES,
    optional(choice(FLOAT_DTYPES)),
    "dtype of products and activations of a 4-bit base (compute_dtype decides where both are given); none: as without.",
    "DTYPE",
  ),
  llm_int8_threshold: option(
    "number",
    "Quantisation",
    QUANTIZES,
    z.number().nonnegative().default(INT8_THRESHOLD),
    "Columns of an 8-bit layer's input with a magnitude of at least this stay in floating point; 0: none.",
  ),
  llm_int8_skip_modules: option(
    "list",
    "Quantisation",
    QUANTIZES,
    optional(oneOrMore),
    "Linear layers that stay unquantised in either form: beginnings (regular expressions), ends or parts of their names; the output head always does.",
  ),
  fp8: option(
    "boolean",
    "Quantisation",
    TRAINS,
    flag(),
    "Multiply e4m3 numbers in the frozen linears' products, forward and back, sums in float32: GPUs from compute capability 8.9 on. LoRA, norms, attention and the head stay as they are.",
  ),
  weight_cache: option(
    "string",
    "Quantisation",
    RUNS,
    choice(["off", "auto", "on"]).default("auto"),
    "Keep quantised weights in the compute dtype too, same results in less time: auto: in training, and where more than 8 sequences are continued at a time, of as many blocks as a GPU's budget (--max-memory) holds beside all else; on: of every block; off: of none.",
    "WHEN",
  ),
};
