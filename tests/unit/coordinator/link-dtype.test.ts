import assert from "node:assert/strict";
import { test } from "node:test";
import { FLOAT_DTYPES } from "../../../src/common/dtype.ts";
import { linkDtype, linkDtypeNote } from "../../../src/coordinator/planning/link-dtype.ts";
import { makePlan } from "../../../src/plan/index.ts";
import { cpus, model, request } from "../plan/models.ts";

test("links carry what was asked for, or the compute dtype where that is the same; what would save nothing is refused", () => {
  for (const compute of FLOAT_DTYPES) {
    assert.equal(linkDtype({ link_dtype: "auto" }, compute), null);
    assert.equal(linkDtype({ link_dtype: "float8_e4m3fn" }, compute), "float8_e4m3fn");
  }
  assert.equal(linkDtype({ link_dtype: "bfloat16" }, "float32"), "bfloat16");
  assert.equal(linkDtype({ link_dtype: "bfloat16" }, "bfloat16"), null);
  assert.throws(() => linkDtype({ link_dtype: "bfloat16" }, "float16"), {
    code: "PL_CONFIG_INVALID",
    message: /as many bytes/,
  });
});

test("a run is told that its results depend on where stages end, or that nothing is rounded", () => {
  const tiny = model("tiny-llama-3-layer");
  const planned = (devices: number, map: Record<string, number> | "balanced" = "balanced") =>
    makePlan(request(tiny, cpus(devices), { strategy: map }));
  assert.match(
    linkDtypeNote("float8_e4m3fn", planned(2)),
    /scale a token.*depend on where stages end.*one worker and two/,
  );
  assert.match(linkDtypeNote("bfloat16", planned(3)), /^--link-dtype bfloat16: .*rounded to it, so/);
  assert.match(linkDtypeNote("float8_e4m3fn", planned(1)), /changes nothing here/);
  // Two devices, of which one holds all.
  assert.match(linkDtypeNote("float8_e4m3fn", planned(2, { "": 1 })), /changes nothing here/);
});
