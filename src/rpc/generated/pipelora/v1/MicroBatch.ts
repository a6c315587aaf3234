// Original file: proto/pipelora/v1/control.proto


export interface MicroBatch {
  'cuSeqlens'?: (number)[];
  'rowIds'?: (number)[];
  'tokens'?: (Buffer | Uint8Array | string);
  'targets'?: (Buffer | Uint8Array | string);
  'weights'?: (Buffer | Uint8Array | string);
}

export interface MicroBatch__Output {
  'cuSeqlens': (number)[];
  'rowIds': (number)[];
  'tokens': (Buffer);
  'targets': (Buffer);
  'weights': (Buffer);
}
