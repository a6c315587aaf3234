// Original file: proto/pipelora/v1/control.proto


export interface MicroBatches {
  'batchRows'?: (Buffer | Uint8Array | string);
  'rowTokens'?: (Buffer | Uint8Array | string);
  'rowIds'?: (Buffer | Uint8Array | string);
  'tokens'?: (Buffer | Uint8Array | string);
  'targets'?: (Buffer | Uint8Array | string);
  'weights'?: (Buffer | Uint8Array | string);
}

export interface MicroBatches__Output {
  'batchRows': (Buffer);
  'rowTokens': (Buffer);
  'rowIds': (Buffer);
  'tokens': (Buffer);
  'targets': (Buffer);
  'weights': (Buffer);
}
