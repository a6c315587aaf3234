// Original file: proto/pipelora/v1/control.proto


export interface Failure {
  'code'?: (string);
  'message'?: (string);
  'hint'?: (string);
}

export interface Failure__Output {
  'code': (string);
  'message': (string);
  'hint': (string);
}
