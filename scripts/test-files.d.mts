import type { Ended, Job } from "./jobs.mjs";

export function testJobs(folders: readonly string[], needs?: readonly string[]): Job[];
export function countTests(ended: readonly Ended[]): string;
