// Original file: proto/pipelora/v1/control.proto


export interface Quantization {
  'method'?: (string);
  'quantType'?: (string);
  'doubleQuant'?: (boolean);
  'int8Threshold'?: (number | string);
  'modules'?: (string)[];
}

export interface Quantization__Output {
  'method': (string);
  'quantType': (string);
  'doubleQuant': (boolean);
  'int8Threshold': (number);
  'modules': (string)[];
}
