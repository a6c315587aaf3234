// Original file: proto/pipelora/v1/tensors.proto


export interface Open {
  'protocol'?: (number);
  'session'?: (string);
  'fromRank'?: (number);
  'toRank'?: (number);
}

export interface Open__Output {
  'protocol': (number);
  'session': (string);
  'fromRank': (number);
  'toRank': (number);
}
