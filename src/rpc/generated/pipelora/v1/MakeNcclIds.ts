// Original file: proto/pipelora/v1/control.proto


export interface MakeNcclIds {
  'count'?: (number);
}

export interface MakeNcclIds__Output {
  'count': (number);
}
