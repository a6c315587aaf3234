// Original file: proto/pipelora/v1/control.proto


export interface Preflight {
  'modelDir'?: (string);
  'outputDir'?: (string);
}

export interface Preflight__Output {
  'modelDir': (string);
  'outputDir': (string);
}
