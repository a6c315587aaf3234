import type { FloatDtype, LinkDtype } from "../../common/dtype.ts";
import { PipeloraError } from "../../common/errors.ts";
import type { Config } from "../../config/options.ts";
import type { Plan } from "../../plan/plan.ts";

/**
 * What activations and gradients are rounded to between ranks; null: they go as they are. Error: PL_CONFIG_INVALID where rounding would save
 * nothing.
 */
export function linkDtype(
  { link_dtype: asked }: Pick<Config, "link_dtype">,
  computeDtype: FloatDtype,
): LinkDtype | null {
  if (asked === "auto" || asked === computeDtype) return null;
  if (asked === "bfloat16" && computeDtype === "float16") {
    throw new PipeloraError(
      "PL_CONFIG_INVALID",
      "--link-dtype bfloat16 with float16 compute: as many bytes, and fewer bits of each number.",
      { hint: "Leave --link-dtype out, or give float8_e4m3fn for half the bytes." },
    );
  }
  return asked;
}

/** What a run is told of it, once. */
export function linkDtypeNote(dtype: LinkDtype, { segments }: Pick<Plan, "segments">): string {
  const crosses = segments.some(
    ({ ranks }, index) => index > 0 && [...ranks, ...segments[index - 1]!.ranks].some((rank) => rank !== ranks[0]),
  );
  if (!crosses) return `--link-dtype ${dtype} changes nothing here: no stage hands over to another device`;
  const how = dtype === "bfloat16" ? "" : " with a scale a token";
  return (
    `--link-dtype ${dtype}: activations and gradients between stages are rounded to it${how}, so results depend on where stages end: ` +
    "one worker and two no longer give the same bits; a repeated or resumed run over the same stages does"
  );
}
