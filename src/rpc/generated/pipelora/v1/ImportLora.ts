// Original file: proto/pipelora/v1/control.proto


export interface ImportLora {
  'tensors'?: (number);
  'adapter'?: (number);
}

export interface ImportLora__Output {
  'tensors': (number);
  'adapter': (number);
}
