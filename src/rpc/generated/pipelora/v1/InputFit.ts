// Original file: proto/pipelora/v1/control.proto


export interface InputFit {
  'module'?: (string);
  'explained'?: (Buffer | Uint8Array | string);
  'similar'?: (Buffer | Uint8Array | string);
}

export interface InputFit__Output {
  'module': (string);
  'explained': (Buffer);
  'similar': (Buffer);
}
