// Original file: proto/pipelora/v1/control.proto


export interface ExportMatrices {
  'parts'?: (string)[];
}

export interface ExportMatrices__Output {
  'parts': (string)[];
}
