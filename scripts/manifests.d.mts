export const folder: string;
export const rendered: string;
export function targets(): [name: string, path: string][];
export function sourceHash(): string;
export function render(path: string): string | null;
