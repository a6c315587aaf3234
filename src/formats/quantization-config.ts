import type { FloatDtype } from "../common/dtype.ts";
import type { QuantizationSettings } from "../common/quantization.ts";

/** quantization_config as transformers' BitsAndBytesConfig writes it into config.json. */
export function quantizationConfig(
  settings: QuantizationSettings,
  skipModules: readonly string[] | null,
  computeDtype: FloatDtype | null,
): Record<string, unknown> {
  const four = settings.method === "4bit" ? settings : null;
  const eight = settings.method === "8bit" ? settings : null;
  return {
    _load_in_4bit: four !== null,
    _load_in_8bit: eight !== null,
    bnb_4bit_compute_dtype: computeDtype ?? "float32",
    bnb_4bit_quant_storage: "uint8",
    bnb_4bit_quant_type: four?.quantType ?? "fp4",
    bnb_4bit_use_double_quant: four?.doubleQuant ?? false,
    llm_int8_enable_fp32_cpu_offload: false,
    llm_int8_has_fp16_weight: false,
    llm_int8_skip_modules: skipModules,
    llm_int8_threshold: eight?.threshold ?? 6,
    load_in_4bit: four !== null,
    load_in_8bit: eight !== null,
    quant_method: "bitsandbytes",
  };
}

/** config.json's text. Python reads a number without a point as an integer, which llm_int8_threshold must not be. */
export function modelConfigText(config: Readonly<Record<string, unknown>>): string {
  const text = JSON.stringify(config, null, 2);
  return `${text.replace(/^(\s*"llm_int8_threshold": \d+)(,?)$/m, "$1.0$2")}\n`;
}
