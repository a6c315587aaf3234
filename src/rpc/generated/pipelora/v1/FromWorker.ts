// Original file: proto/pipelora/v1/control.proto

import type { Hello as _pipelora_v1_Hello, Hello__Output as _pipelora_v1_Hello__Output } from '../../pipelora/v1/Hello.ts';
import type { Heartbeat as _pipelora_v1_Heartbeat, Heartbeat__Output as _pipelora_v1_Heartbeat__Output } from '../../pipelora/v1/Heartbeat.ts';
import type { Failure as _pipelora_v1_Failure, Failure__Output as _pipelora_v1_Failure__Output } from '../../pipelora/v1/Failure.ts';
import type { Prepared as _pipelora_v1_Prepared, Prepared__Output as _pipelora_v1_Prepared__Output } from '../../pipelora/v1/Prepared.ts';
import type { StepResult as _pipelora_v1_StepResult, StepResult__Output as _pipelora_v1_StepResult__Output } from '../../pipelora/v1/StepResult.ts';
import type { EvaluateResult as _pipelora_v1_EvaluateResult, EvaluateResult__Output as _pipelora_v1_EvaluateResult__Output } from '../../pipelora/v1/EvaluateResult.ts';
import type { Done as _pipelora_v1_Done, Done__Output as _pipelora_v1_Done__Output } from '../../pipelora/v1/Done.ts';
import type { MatrixTensor as _pipelora_v1_MatrixTensor, MatrixTensor__Output as _pipelora_v1_MatrixTensor__Output } from '../../pipelora/v1/MatrixTensor.ts';
import type { InferResult as _pipelora_v1_InferResult, InferResult__Output as _pipelora_v1_InferResult__Output } from '../../pipelora/v1/InferResult.ts';
import type { Calibrated as _pipelora_v1_Calibrated, Calibrated__Output as _pipelora_v1_Calibrated__Output } from '../../pipelora/v1/Calibrated.ts';
import type { LinkProbed as _pipelora_v1_LinkProbed, LinkProbed__Output as _pipelora_v1_LinkProbed__Output } from '../../pipelora/v1/LinkProbed.ts';
import type { OutputFolderState as _pipelora_v1_OutputFolderState, OutputFolderState__Output as _pipelora_v1_OutputFolderState__Output } from '../../pipelora/v1/OutputFolderState.ts';
import type { CheckpointList as _pipelora_v1_CheckpointList, CheckpointList__Output as _pipelora_v1_CheckpointList__Output } from '../../pipelora/v1/CheckpointList.ts';
import type { FileChunk as _pipelora_v1_FileChunk, FileChunk__Output as _pipelora_v1_FileChunk__Output } from '../../pipelora/v1/FileChunk.ts';
import type { PreflightReport as _pipelora_v1_PreflightReport, PreflightReport__Output as _pipelora_v1_PreflightReport__Output } from '../../pipelora/v1/PreflightReport.ts';
import type { Leaving as _pipelora_v1_Leaving, Leaving__Output as _pipelora_v1_Leaving__Output } from '../../pipelora/v1/Leaving.ts';
import type { NcclIds as _pipelora_v1_NcclIds, NcclIds__Output as _pipelora_v1_NcclIds__Output } from '../../pipelora/v1/NcclIds.ts';
import type { RankReport as _pipelora_v1_RankReport, RankReport__Output as _pipelora_v1_RankReport__Output } from '../../pipelora/v1/RankReport.ts';
import type { Clock as _pipelora_v1_Clock, Clock__Output as _pipelora_v1_Clock__Output } from '../../pipelora/v1/Clock.ts';
import type { BoundaryState as _pipelora_v1_BoundaryState, BoundaryState__Output as _pipelora_v1_BoundaryState__Output } from '../../pipelora/v1/BoundaryState.ts';
import type { Long } from '@grpc/proto-loader';

export interface FromWorker {
  'replyTo'?: (number | string | Long);
  'hello'?: (_pipelora_v1_Hello | null);
  'heartbeat'?: (_pipelora_v1_Heartbeat | null);
  'failure'?: (_pipelora_v1_Failure | null);
  'prepared'?: (_pipelora_v1_Prepared | null);
  'stepResult'?: (_pipelora_v1_StepResult | null);
  'evaluateResult'?: (_pipelora_v1_EvaluateResult | null);
  'done'?: (_pipelora_v1_Done | null);
  'matrixTensor'?: (_pipelora_v1_MatrixTensor | null);
  'inferResult'?: (_pipelora_v1_InferResult | null);
  'calibrated'?: (_pipelora_v1_Calibrated | null);
  'linkProbed'?: (_pipelora_v1_LinkProbed | null);
  'outputFolder'?: (_pipelora_v1_OutputFolderState | null);
  'checkpoints'?: (_pipelora_v1_CheckpointList | null);
  'fileChunk'?: (_pipelora_v1_FileChunk | null);
  'preflightReport'?: (_pipelora_v1_PreflightReport | null);
  'leaving'?: (_pipelora_v1_Leaving | null);
  'ncclIds'?: (_pipelora_v1_NcclIds | null);
  'rankReport'?: (_pipelora_v1_RankReport | null);
  'clock'?: (_pipelora_v1_Clock | null);
  'boundaryState'?: (_pipelora_v1_BoundaryState | null);
  'body'?: "hello"|"heartbeat"|"failure"|"prepared"|"stepResult"|"evaluateResult"|"done"|"matrixTensor"|"inferResult"|"calibrated"|"linkProbed"|"outputFolder"|"checkpoints"|"fileChunk"|"preflightReport"|"leaving"|"ncclIds"|"rankReport"|"clock"|"boundaryState";
}

export interface FromWorker__Output {
  'replyTo': (number);
  'hello'?: (_pipelora_v1_Hello__Output | null);
  'heartbeat'?: (_pipelora_v1_Heartbeat__Output | null);
  'failure'?: (_pipelora_v1_Failure__Output | null);
  'prepared'?: (_pipelora_v1_Prepared__Output | null);
  'stepResult'?: (_pipelora_v1_StepResult__Output | null);
  'evaluateResult'?: (_pipelora_v1_EvaluateResult__Output | null);
  'done'?: (_pipelora_v1_Done__Output | null);
  'matrixTensor'?: (_pipelora_v1_MatrixTensor__Output | null);
  'inferResult'?: (_pipelora_v1_InferResult__Output | null);
  'calibrated'?: (_pipelora_v1_Calibrated__Output | null);
  'linkProbed'?: (_pipelora_v1_LinkProbed__Output | null);
  'outputFolder'?: (_pipelora_v1_OutputFolderState__Output | null);
  'checkpoints'?: (_pipelora_v1_CheckpointList__Output | null);
  'fileChunk'?: (_pipelora_v1_FileChunk__Output | null);
  'preflightReport'?: (_pipelora_v1_PreflightReport__Output | null);
  'leaving'?: (_pipelora_v1_Leaving__Output | null);
  'ncclIds'?: (_pipelora_v1_NcclIds__Output | null);
  'rankReport'?: (_pipelora_v1_RankReport__Output | null);
  'clock'?: (_pipelora_v1_Clock__Output | null);
  'boundaryState'?: (_pipelora_v1_BoundaryState__Output | null);
  'body'?: "hello"|"heartbeat"|"failure"|"prepared"|"stepResult"|"evaluateResult"|"done"|"matrixTensor"|"inferResult"|"calibrated"|"linkProbed"|"outputFolder"|"checkpoints"|"fileChunk"|"preflightReport"|"leaving"|"ncclIds"|"rankReport"|"clock"|"boundaryState";
}
