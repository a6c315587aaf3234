// Original file: proto/pipelora/v1/control.proto

import type { Welcome as _pipelora_v1_Welcome, Welcome__Output as _pipelora_v1_Welcome__Output } from '../../pipelora/v1/Welcome.ts';
import type { Prepare as _pipelora_v1_Prepare, Prepare__Output as _pipelora_v1_Prepare__Output } from '../../pipelora/v1/Prepare.ts';
import type { RunStep as _pipelora_v1_RunStep, RunStep__Output as _pipelora_v1_RunStep__Output } from '../../pipelora/v1/RunStep.ts';
import type { Update as _pipelora_v1_Update, Update__Output as _pipelora_v1_Update__Output } from '../../pipelora/v1/Update.ts';
import type { Evaluate as _pipelora_v1_Evaluate, Evaluate__Output as _pipelora_v1_Evaluate__Output } from '../../pipelora/v1/Evaluate.ts';
import type { ExportMatrices as _pipelora_v1_ExportMatrices, ExportMatrices__Output as _pipelora_v1_ExportMatrices__Output } from '../../pipelora/v1/ExportMatrices.ts';
import type { ImportMatrices as _pipelora_v1_ImportMatrices, ImportMatrices__Output as _pipelora_v1_ImportMatrices__Output } from '../../pipelora/v1/ImportMatrices.ts';
import type { MatrixTensor as _pipelora_v1_MatrixTensor, MatrixTensor__Output as _pipelora_v1_MatrixTensor__Output } from '../../pipelora/v1/MatrixTensor.ts';
import type { Shutdown as _pipelora_v1_Shutdown, Shutdown__Output as _pipelora_v1_Shutdown__Output } from '../../pipelora/v1/Shutdown.ts';
import type { OpenCache as _pipelora_v1_OpenCache, OpenCache__Output as _pipelora_v1_OpenCache__Output } from '../../pipelora/v1/OpenCache.ts';
import type { Infer as _pipelora_v1_Infer, Infer__Output as _pipelora_v1_Infer__Output } from '../../pipelora/v1/Infer.ts';
import type { ReadInputs as _pipelora_v1_ReadInputs, ReadInputs__Output as _pipelora_v1_ReadInputs__Output } from '../../pipelora/v1/ReadInputs.ts';
import type { Calibrate as _pipelora_v1_Calibrate, Calibrate__Output as _pipelora_v1_Calibrate__Output } from '../../pipelora/v1/Calibrate.ts';
import type { ProbeLink as _pipelora_v1_ProbeLink, ProbeLink__Output as _pipelora_v1_ProbeLink__Output } from '../../pipelora/v1/ProbeLink.ts';
import type { OutputFolder as _pipelora_v1_OutputFolder, OutputFolder__Output as _pipelora_v1_OutputFolder__Output } from '../../pipelora/v1/OutputFolder.ts';
import type { WriteFile as _pipelora_v1_WriteFile, WriteFile__Output as _pipelora_v1_WriteFile__Output } from '../../pipelora/v1/WriteFile.ts';
import type { CommitFiles as _pipelora_v1_CommitFiles, CommitFiles__Output as _pipelora_v1_CommitFiles__Output } from '../../pipelora/v1/CommitFiles.ts';
import type { ListCheckpoints as _pipelora_v1_ListCheckpoints, ListCheckpoints__Output as _pipelora_v1_ListCheckpoints__Output } from '../../pipelora/v1/ListCheckpoints.ts';
import type { ReadFile as _pipelora_v1_ReadFile, ReadFile__Output as _pipelora_v1_ReadFile__Output } from '../../pipelora/v1/ReadFile.ts';
import type { Preflight as _pipelora_v1_Preflight, Preflight__Output as _pipelora_v1_Preflight__Output } from '../../pipelora/v1/Preflight.ts';
import type { MakeNcclIds as _pipelora_v1_MakeNcclIds, MakeNcclIds__Output as _pipelora_v1_MakeNcclIds__Output } from '../../pipelora/v1/MakeNcclIds.ts';
import type { ReportRank as _pipelora_v1_ReportRank, ReportRank__Output as _pipelora_v1_ReportRank__Output } from '../../pipelora/v1/ReportRank.ts';
import type { ReadClock as _pipelora_v1_ReadClock, ReadClock__Output as _pipelora_v1_ReadClock__Output } from '../../pipelora/v1/ReadClock.ts';
import type { Long } from '@grpc/proto-loader';

export interface ToWorker {
  'request'?: (number | string | Long);
  'welcome'?: (_pipelora_v1_Welcome | null);
  'prepare'?: (_pipelora_v1_Prepare | null);
  'runStep'?: (_pipelora_v1_RunStep | null);
  'applyUpdate'?: (_pipelora_v1_Update | null);
  'evaluate'?: (_pipelora_v1_Evaluate | null);
  'exportMatrices'?: (_pipelora_v1_ExportMatrices | null);
  'importMatrices'?: (_pipelora_v1_ImportMatrices | null);
  'matrixTensor'?: (_pipelora_v1_MatrixTensor | null);
  'shutdown'?: (_pipelora_v1_Shutdown | null);
  'openCache'?: (_pipelora_v1_OpenCache | null);
  'infer'?: (_pipelora_v1_Infer | null);
  'readInputs'?: (_pipelora_v1_ReadInputs | null);
  'calibrate'?: (_pipelora_v1_Calibrate | null);
  'probeLink'?: (_pipelora_v1_ProbeLink | null);
  'outputFolder'?: (_pipelora_v1_OutputFolder | null);
  'writeFile'?: (_pipelora_v1_WriteFile | null);
  'commitFiles'?: (_pipelora_v1_CommitFiles | null);
  'listCheckpoints'?: (_pipelora_v1_ListCheckpoints | null);
  'readFile'?: (_pipelora_v1_ReadFile | null);
  'preflight'?: (_pipelora_v1_Preflight | null);
  'makeNcclIds'?: (_pipelora_v1_MakeNcclIds | null);
  'reportRank'?: (_pipelora_v1_ReportRank | null);
  'readClock'?: (_pipelora_v1_ReadClock | null);
  'body'?: "welcome"|"prepare"|"runStep"|"applyUpdate"|"evaluate"|"readInputs"|"exportMatrices"|"importMatrices"|"matrixTensor"|"openCache"|"infer"|"shutdown"|"calibrate"|"probeLink"|"outputFolder"|"writeFile"|"commitFiles"|"listCheckpoints"|"readFile"|"preflight"|"makeNcclIds"|"reportRank"|"readClock";
}

export interface ToWorker__Output {
  'request': (number);
  'welcome'?: (_pipelora_v1_Welcome__Output | null);
  'prepare'?: (_pipelora_v1_Prepare__Output | null);
  'runStep'?: (_pipelora_v1_RunStep__Output | null);
  'applyUpdate'?: (_pipelora_v1_Update__Output | null);
  'evaluate'?: (_pipelora_v1_Evaluate__Output | null);
  'exportMatrices'?: (_pipelora_v1_ExportMatrices__Output | null);
  'importMatrices'?: (_pipelora_v1_ImportMatrices__Output | null);
  'matrixTensor'?: (_pipelora_v1_MatrixTensor__Output | null);
  'shutdown'?: (_pipelora_v1_Shutdown__Output | null);
  'openCache'?: (_pipelora_v1_OpenCache__Output | null);
  'infer'?: (_pipelora_v1_Infer__Output | null);
  'readInputs'?: (_pipelora_v1_ReadInputs__Output | null);
  'calibrate'?: (_pipelora_v1_Calibrate__Output | null);
  'probeLink'?: (_pipelora_v1_ProbeLink__Output | null);
  'outputFolder'?: (_pipelora_v1_OutputFolder__Output | null);
  'writeFile'?: (_pipelora_v1_WriteFile__Output | null);
  'commitFiles'?: (_pipelora_v1_CommitFiles__Output | null);
  'listCheckpoints'?: (_pipelora_v1_ListCheckpoints__Output | null);
  'readFile'?: (_pipelora_v1_ReadFile__Output | null);
  'preflight'?: (_pipelora_v1_Preflight__Output | null);
  'makeNcclIds'?: (_pipelora_v1_MakeNcclIds__Output | null);
  'reportRank'?: (_pipelora_v1_ReportRank__Output | null);
  'readClock'?: (_pipelora_v1_ReadClock__Output | null);
  'body'?: "welcome"|"prepare"|"runStep"|"applyUpdate"|"evaluate"|"readInputs"|"exportMatrices"|"importMatrices"|"matrixTensor"|"openCache"|"infer"|"shutdown"|"calibrate"|"probeLink"|"outputFolder"|"writeFile"|"commitFiles"|"listCheckpoints"|"readFile"|"preflight"|"makeNcclIds"|"reportRank"|"readClock";
}
