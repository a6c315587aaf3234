// Original file: proto/pipelora/v1/control.proto


export interface OutputFolderState {
  'dir'?: (string);
  'seen'?: (string)[];
}

export interface OutputFolderState__Output {
  'dir': (string);
  'seen': (string)[];
}
