// Original file: proto/pipelora/v1/control.proto

import type { HubModel as _pipelora_v1_HubModel, HubModel__Output as _pipelora_v1_HubModel__Output } from '../../pipelora/v1/HubModel.ts';

export interface Preflight {
  'modelDir'?: (string);
  'outputDir'?: (string);
  'hubModel'?: (_pipelora_v1_HubModel | null);
}

export interface Preflight__Output {
  'modelDir': (string);
  'outputDir': (string);
  'hubModel': (_pipelora_v1_HubModel__Output | null);
}
