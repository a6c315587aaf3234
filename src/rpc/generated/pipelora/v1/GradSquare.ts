// Original file: proto/pipelora/v1/control.proto


export interface GradSquare {
  'moduleId'?: (number);
  'a'?: (number | string);
  'b'?: (number | string);
}

export interface GradSquare__Output {
  'moduleId': (number);
  'a': (number);
  'b': (number);
}
