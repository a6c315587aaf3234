export interface Job {
  readonly name: string;
  readonly command: readonly string[];
  readonly needs?: readonly string[];
  readonly lane?: string;
  readonly beside?: boolean;
  readonly check?: (output: string) => string | null;
}
export interface Ended {
  readonly name: string;
  readonly seconds: number;
  readonly wrong: string | null;
  readonly output: string;
}
export function runJobs(
  jobs: readonly Job[],
  slots: number,
  options?: { deadlineMs?: number; show?: (text: string) => void },
): Promise<Ended[]>;
