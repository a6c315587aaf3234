/** A run of consecutive layers on one device, or on several that take its micro-batches in turn. */
export interface Segment {
  readonly index: number;
  /** Micro-batch i runs on devices[i mod their number]. */
  readonly devices: readonly number[];
  /** The devices' positions among all devices by ascending id. */
  readonly ranks: readonly number[];
  readonly firstLayer: number;
  /** Inclusive. */
  readonly lastLayer: number;
}

/** The devices of each layer, in model order. Most layers have one; several take the layer's micro-batches in turn. */
export type LayerDevices = readonly (readonly number[])[];

/** Cuts the model where the devices change. `deviceIds`: ascending. */
export function segmentsOf(layerDevices: LayerDevices, deviceIds: readonly number[]): Segment[] {
  const rankOf = new Map(deviceIds.map((id, rank) => [id, rank]));
  const segments: Segment[] = [];
  for (const [layer, devices] of layerDevices.entries()) {
    const last = segments.at(-1);
    if (last !== undefined && last.devices.join() === devices.join()) {
      segments[segments.length - 1] = { ...last, lastLayer: layer };
    } else {
      const ranks = devices.map((id) => rankOf.get(id)!);
      segments.push({ index: segments.length, devices, ranks, firstLayer: layer, lastLayer: layer });
    }
  }
  return segments;
}
