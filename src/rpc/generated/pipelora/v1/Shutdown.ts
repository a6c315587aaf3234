// Original file: proto/pipelora/v1/control.proto


export interface Shutdown {
  'rejoin'?: (boolean);
}

export interface Shutdown__Output {
  'rejoin': (boolean);
}
