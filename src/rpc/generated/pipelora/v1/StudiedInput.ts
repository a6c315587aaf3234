// Original file: proto/pipelora/v1/control.proto


export interface StudiedInput {
  'module'?: (string);
  'components'?: (number);
}

export interface StudiedInput__Output {
  'module': (string);
  'components': (number);
}
