// Writes the generated pages of docs/reference.
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { errorsTable } from "../src/common/errors.ts";
import { exitCodesTable } from "../src/common/exit-codes.ts";
import { PACKAGE_ROOT } from "../src/common/root.ts";
import { flagsTable } from "../src/config/help.ts";
import { cataloguePage } from "../src/plan/paper/catalogue.ts";

writeFileSync(join(PACKAGE_ROOT, "docs", "reference", "flags.md"), flagsTable());
writeFileSync(join(PACKAGE_ROOT, "docs", "reference", "errors.md"), errorsTable());
writeFileSync(join(PACKAGE_ROOT, "docs", "reference", "exit-codes.md"), exitCodesTable());
writeFileSync(join(PACKAGE_ROOT, "docs", "reference", "gpus.md"), cataloguePage());
