// Original file: proto/pipelora/v1/control.proto


export interface ExportMatrices {
  'parts'?: (string)[];
  'adapter'?: (number);
  'names'?: (string)[];
}

export interface ExportMatrices__Output {
  'parts': (string)[];
  'adapter': (number);
  'names': (string)[];
}
