// Original file: proto/pipelora/v1/control.proto


export interface ImportMatrices {
  'tensors'?: (number);
  'shelf'?: (number);
  'adapter'?: (number);
}

export interface ImportMatrices__Output {
  'tensors': (number);
  'shelf': (number);
  'adapter': (number);
}
