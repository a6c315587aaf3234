// Original file: proto/pipelora/v1/control.proto


export interface LoraInit {
  'kind'?: (string);
}

export interface LoraInit__Output {
  'kind': (string);
}
