// Original file: proto/pipelora/v1/control.proto


export interface LayerTime {
  'tokens'?: (number);
  'forward'?: (number | string);
  'backward'?: (number | string);
  'forwardProcessor'?: (number | string);
  'backwardProcessor'?: (number | string);
}

export interface LayerTime__Output {
  'tokens': (number);
  'forward': (number);
  'backward': (number);
  'forwardProcessor': (number);
  'backwardProcessor': (number);
}
