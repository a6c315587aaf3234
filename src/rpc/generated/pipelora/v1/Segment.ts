// Original file: proto/pipelora/v1/control.proto


export interface Segment {
  'index'?: (number);
  'firstLayer'?: (number);
  'lastLayer'?: (number);
  'checkpointedBlocks'?: (number);
  'needsInputGrad'?: (boolean);
  'needsBackward'?: (boolean);
  'cachedBlocks'?: (number);
  'offloadedBlocks'?: (number);
  'ranks'?: (number)[];
  'forwardSeconds'?: (number | string);
  'backwardSeconds'?: (number | string);
}

export interface Segment__Output {
  'index': (number);
  'firstLayer': (number);
  'lastLayer': (number);
  'checkpointedBlocks': (number);
  'needsInputGrad': (boolean);
  'needsBackward': (boolean);
  'cachedBlocks': (number);
  'offloadedBlocks': (number);
  'ranks': (number)[];
  'forwardSeconds': (number);
  'backwardSeconds': (number);
}
