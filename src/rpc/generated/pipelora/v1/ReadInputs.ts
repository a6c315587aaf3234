// Original file: proto/pipelora/v1/control.proto


export interface ReadInputs {
  'modules'?: (string)[];
}

export interface ReadInputs__Output {
  'modules': (string)[];
}
