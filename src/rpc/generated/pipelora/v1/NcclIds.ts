// Original file: proto/pipelora/v1/control.proto


export interface NcclIds {
  'ids'?: (Buffer | Uint8Array | string)[];
}

export interface NcclIds__Output {
  'ids': (Buffer)[];
}
