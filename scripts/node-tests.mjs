// Runs every *.test.ts below a folder: node scripts/node-tests.mjs FOLDER HOW_MANY_AT_A_TIME
import { reportJobs, runJobs } from "./jobs.mjs";
import { countTests, testJobs } from "./test-files.mjs";

const [folder, slots] = process.argv.slice(2);
const ended = await runJobs(testJobs([folder]), Number(slots));
reportJobs(ended, [countTests(ended)]);
