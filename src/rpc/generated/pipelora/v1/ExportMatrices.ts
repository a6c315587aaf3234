// Original file: proto/pipelora/v1/control.proto


export interface ExportMatrices {
  'parts'?: (string)[];
  'adapter'?: (number);
}

export interface ExportMatrices__Output {
  'parts': (string)[];
  'adapter': (number);
}
