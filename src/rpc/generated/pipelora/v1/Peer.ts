// Original file: proto/pipelora/v1/control.proto


export interface Peer {
  'rank'?: (number);
  'address'?: (string);
  'link'?: (string);
  'ncclTo'?: (Buffer | Uint8Array | string);
  'ncclFrom'?: (Buffer | Uint8Array | string);
}

export interface Peer__Output {
  'rank': (number);
  'address': (string);
  'link': (string);
  'ncclTo': (Buffer);
  'ncclFrom': (Buffer);
}
