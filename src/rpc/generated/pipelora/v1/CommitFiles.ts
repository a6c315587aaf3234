// Original file: proto/pipelora/v1/control.proto

import type { FileHash as _pipelora_v1_FileHash, FileHash__Output as _pipelora_v1_FileHash__Output } from '../../pipelora/v1/FileHash.ts';

export interface CommitFiles {
  'save'?: (string);
  'files'?: (_pipelora_v1_FileHash)[];
  'dropped'?: (string)[];
  'adapter'?: (string);
}

export interface CommitFiles__Output {
  'save': (string);
  'files': (_pipelora_v1_FileHash__Output)[];
  'dropped': (string)[];
  'adapter': (string);
}
