export function demands(readelf: string, floor: string, beside?: readonly string[]): string[];
export function demandsOf(path: string, floor: string, beside?: readonly string[]): string[];
