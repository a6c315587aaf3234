// Original file: proto/pipelora/v1/control.proto


export interface Peer {
  'rank'?: (number);
  'address'?: (string);
  'link'?: (string);
}

export interface Peer__Output {
  'rank': (number);
  'address': (string);
  'link': (string);
}
