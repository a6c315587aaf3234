// Original file: proto/pipelora/v1/control.proto


export interface Clock {
  'receivedMs'?: (number | string);
  'sentMs'?: (number | string);
}

export interface Clock__Output {
  'receivedMs': (number);
  'sentMs': (number);
}
