// Original file: proto/pipelora/v1/control.proto


export interface LoraPair {
  'moduleId'?: (number);
  'module'?: (string);
  'r'?: (number);
  'scale'?: (number | string);
  'dropout'?: (number | string);
  'in'?: (number);
  'out'?: (number);
  'expertsOf'?: (string);
  'experts'?: (number);
  'dora'?: (boolean);
  'embedding'?: (boolean);
}

export interface LoraPair__Output {
  'moduleId': (number);
  'module': (string);
  'r': (number);
  'scale': (number);
  'dropout': (number);
  'in': (number);
  'out': (number);
  'expertsOf': (string);
  'experts': (number);
  'dora': (boolean);
  'embedding': (boolean);
}
