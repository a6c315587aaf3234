// Original file: proto/pipelora/v1/control.proto


export interface LinkProbed {
  'secondsPerMessage'?: (number | string);
  'latency'?: (number | string);
  'compute'?: (number | string);
}

export interface LinkProbed__Output {
  'secondsPerMessage': (number);
  'latency': (number);
  'compute': (number);
}
