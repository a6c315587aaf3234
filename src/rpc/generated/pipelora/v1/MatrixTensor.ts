// Original file: proto/pipelora/v1/control.proto


export interface MatrixTensor {
  'name'?: (string);
  'part'?: (string);
  'values'?: (Buffer | Uint8Array | string);
}

export interface MatrixTensor__Output {
  'name': (string);
  'part': (string);
  'values': (Buffer);
}
