// Original file: proto/pipelora/v1/control.proto


export interface HubModel {
  'hub'?: (string);
  'name'?: (string);
  'revision'?: (string);
  'commit'?: (string);
}

export interface HubModel__Output {
  'hub': (string);
  'name': (string);
  'revision': (string);
  'commit': (string);
}
