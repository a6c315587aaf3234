// Original file: proto/pipelora/v1/control.proto


export interface GeneratedToken {
  'token'?: (number);
  'last'?: (boolean);
}

export interface GeneratedToken__Output {
  'token': (number);
  'last': (boolean);
}
