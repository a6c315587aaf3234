// Original file: proto/pipelora/v1/control.proto


export interface LikelyToken {
  'token'?: (number);
  'logProbability'?: (number | string);
}

export interface LikelyToken__Output {
  'token': (number);
  'logProbability': (number);
}
