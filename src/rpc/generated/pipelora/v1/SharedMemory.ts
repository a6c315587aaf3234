// Original file: proto/pipelora/v1/tensors.proto


export interface SharedMemory {
  'pid'?: (number);
  'fd'?: (number);
  'token'?: (string);
}

export interface SharedMemory__Output {
  'pid': (number);
  'fd': (number);
  'token': (string);
}
