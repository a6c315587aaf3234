// Original file: proto/pipelora/v1/control.proto


export interface OutputFolder {
  'action'?: (string);
  'dir'?: (string);
  'mark'?: (string);
  'marks'?: (string)[];
  'adapter'?: (string);
}

export interface OutputFolder__Output {
  'action': (string);
  'dir': (string);
  'mark': (string);
  'marks': (string)[];
  'adapter': (string);
}
