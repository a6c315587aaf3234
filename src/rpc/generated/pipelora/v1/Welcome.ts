// Original file: proto/pipelora/v1/control.proto


export interface Welcome {
  'session'?: (string);
  'rank'?: (number);
  'worldSize'?: (number);
  'heartbeatMs'?: (number);
  'run'?: (string);
}

export interface Welcome__Output {
  'session': (string);
  'rank': (number);
  'worldSize': (number);
  'heartbeatMs': (number);
  'run': (string);
}
