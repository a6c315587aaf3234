// Original file: proto/pipelora/v1/control.proto


export interface Segment {
  'index'?: (number);
  'rank'?: (number);
  'firstLayer'?: (number);
  'lastLayer'?: (number);
  'checkpointedBlocks'?: (number);
  'needsInputGrad'?: (boolean);
  'needsBackward'?: (boolean);
  'cachedBlocks'?: (number);
  'offloadedBlocks'?: (number);
}

export interface Segment__Output {
  'index': (number);
  'rank': (number);
  'firstLayer': (number);
  'lastLayer': (number);
  'checkpointedBlocks': (number);
  'needsInputGrad': (boolean);
  'needsBackward': (boolean);
  'cachedBlocks': (number);
  'offloadedBlocks': (number);
}
