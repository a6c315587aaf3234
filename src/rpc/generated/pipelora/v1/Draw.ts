// Original file: proto/pipelora/v1/control.proto


export interface Draw {
  'sequence'?: (number);
  'temperature'?: (number | string);
  'topP'?: (number | string);
  'topK'?: (number);
  'minP'?: (number | string);
  'repetitionPenalty'?: (number | string);
  'seen'?: (Buffer | Uint8Array | string);
  'biased'?: (Buffer | Uint8Array | string);
  'biases'?: (Buffer | Uint8Array | string);
  'draw'?: (number);
  'logProbabilities'?: (boolean);
  'likeliest'?: (number);
}

export interface Draw__Output {
  'sequence': (number);
  'temperature': (number);
  'topP': (number);
  'topK': (number);
  'minP': (number);
  'repetitionPenalty': (number);
  'seen': (Buffer);
  'biased': (Buffer);
  'biases': (Buffer);
  'draw': (number);
  'logProbabilities': (boolean);
  'likeliest': (number);
}
