// Original file: proto/pipelora/v1/control.proto

import type { Peer as _pipelora_v1_Peer, Peer__Output as _pipelora_v1_Peer__Output } from '../../pipelora/v1/Peer.ts';

export interface ProbeLink {
  'from'?: (number);
  'to'?: (number);
  'bytes'?: (number);
  'count'?: (number);
  'peers'?: (_pipelora_v1_Peer)[];
  'linkTimeoutS'?: (number | string);
}

export interface ProbeLink__Output {
  'from': (number);
  'to': (number);
  'bytes': (number);
  'count': (number);
  'peers': (_pipelora_v1_Peer__Output)[];
  'linkTimeoutS': (number);
}
