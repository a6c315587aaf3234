// Original file: proto/pipelora/v1/control.proto


export interface LoraTensor {
  'module'?: (string);
  'matrix'?: (string);
  'part'?: (string);
  'values'?: (Buffer | Uint8Array | string);
}

export interface LoraTensor__Output {
  'module': (string);
  'matrix': (string);
  'part': (string);
  'values': (Buffer);
}
