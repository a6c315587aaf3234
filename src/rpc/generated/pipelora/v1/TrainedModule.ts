// Original file: proto/pipelora/v1/control.proto


export interface TrainedModule {
  'module'?: (string);
  'what'?: (string);
  'matrix'?: (string);
  'tokens'?: (Buffer | Uint8Array | string);
  'twinOf'?: (string);
}

export interface TrainedModule__Output {
  'module': (string);
  'what': (string);
  'matrix': (string);
  'tokens': (Buffer);
  'twinOf': (string);
}
