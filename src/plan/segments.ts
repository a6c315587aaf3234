/** A run of consecutive layers on one device. */
export interface Segment {
  readonly index: number;
  readonly device: number;
  /** Position of the device among all devices by ascending id. */
  readonly rank: number;
  readonly firstLayer: number;
  /** Inclusive. */
  readonly lastLayer: number;
}

/** Cuts the model where the device changes. `layerDevices` is in model order; `deviceIds` ascending. */
export function segmentsOf(layerDevices: readonly number[], deviceIds: readonly number[]): Segment[] {
  const rankOf = new Map(deviceIds.map((id, rank) => [id, rank]));
  const segments: Segment[] = [];
  for (const [layer, device] of layerDevices.entries()) {
    const last = segments.at(-1);
    if (last?.device === device) segments[segments.length - 1] = { ...last, lastLayer: layer };
    else
      segments.push({ index: segments.length, device, rank: rankOf.get(device)!, firstLayer: layer, lastLayer: layer });
  }
  return segments;
}
