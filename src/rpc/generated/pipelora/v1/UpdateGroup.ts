// Original file: proto/pipelora/v1/control.proto


export interface UpdateGroup {
  'learningRate'?: (number | string);
  'weightDecay'?: (number | string);
}

export interface UpdateGroup__Output {
  'learningRate': (number);
  'weightDecay': (number);
}
