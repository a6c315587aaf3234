// Original file: proto/pipelora/v1/control.proto


export interface ExportLora {
  'parts'?: (string)[];
}

export interface ExportLora__Output {
  'parts': (string)[];
}
