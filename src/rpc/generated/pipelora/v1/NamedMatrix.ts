// Original file: proto/pipelora/v1/control.proto


export interface NamedMatrix {
  'name'?: (string);
  'group'?: (number);
}

export interface NamedMatrix__Output {
  'name': (string);
  'group': (number);
}
