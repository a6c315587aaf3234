// Original file: proto/pipelora/v1/control.proto


export interface ListCheckpoints {
  'adapter'?: (string);
}

export interface ListCheckpoints__Output {
  'adapter': (string);
}
