import type * as grpc from '@grpc/grpc-js';
import type { MessageTypeDefinition } from '@grpc/proto-loader';

import type { Adapter as _pipelora_v1_Adapter, Adapter__Output as _pipelora_v1_Adapter__Output } from './pipelora/v1/Adapter.ts';
import type { AdapterStep as _pipelora_v1_AdapterStep, AdapterStep__Output as _pipelora_v1_AdapterStep__Output } from './pipelora/v1/AdapterStep.ts';
import type { AdapterSums as _pipelora_v1_AdapterSums, AdapterSums__Output as _pipelora_v1_AdapterSums__Output } from './pipelora/v1/AdapterSums.ts';
import type { BoundaryState as _pipelora_v1_BoundaryState, BoundaryState__Output as _pipelora_v1_BoundaryState__Output } from './pipelora/v1/BoundaryState.ts';
import type { Calibrate as _pipelora_v1_Calibrate, Calibrate__Output as _pipelora_v1_Calibrate__Output } from './pipelora/v1/Calibrate.ts';
import type { Calibrated as _pipelora_v1_Calibrated, Calibrated__Output as _pipelora_v1_Calibrated__Output } from './pipelora/v1/Calibrated.ts';
import type { CheckpointFiles as _pipelora_v1_CheckpointFiles, CheckpointFiles__Output as _pipelora_v1_CheckpointFiles__Output } from './pipelora/v1/CheckpointFiles.ts';
import type { CheckpointList as _pipelora_v1_CheckpointList, CheckpointList__Output as _pipelora_v1_CheckpointList__Output } from './pipelora/v1/CheckpointList.ts';
import type { Clock as _pipelora_v1_Clock, Clock__Output as _pipelora_v1_Clock__Output } from './pipelora/v1/Clock.ts';
import type { CommitFiles as _pipelora_v1_CommitFiles, CommitFiles__Output as _pipelora_v1_CommitFiles__Output } from './pipelora/v1/CommitFiles.ts';
import type { CoordinationClient as _pipelora_v1_CoordinationClient, CoordinationDefinition as _pipelora_v1_CoordinationDefinition } from './pipelora/v1/Coordination.ts';
import type { Done as _pipelora_v1_Done, Done__Output as _pipelora_v1_Done__Output } from './pipelora/v1/Done.ts';
import type { Draw as _pipelora_v1_Draw, Draw__Output as _pipelora_v1_Draw__Output } from './pipelora/v1/Draw.ts';
import type { DrawnToken as _pipelora_v1_DrawnToken, DrawnToken__Output as _pipelora_v1_DrawnToken__Output } from './pipelora/v1/DrawnToken.ts';
import type { Evaluate as _pipelora_v1_Evaluate, Evaluate__Output as _pipelora_v1_Evaluate__Output } from './pipelora/v1/Evaluate.ts';
import type { EvaluateResult as _pipelora_v1_EvaluateResult, EvaluateResult__Output as _pipelora_v1_EvaluateResult__Output } from './pipelora/v1/EvaluateResult.ts';
import type { ExportMatrices as _pipelora_v1_ExportMatrices, ExportMatrices__Output as _pipelora_v1_ExportMatrices__Output } from './pipelora/v1/ExportMatrices.ts';
import type { Failure as _pipelora_v1_Failure, Failure__Output as _pipelora_v1_Failure__Output } from './pipelora/v1/Failure.ts';
import type { FileChunk as _pipelora_v1_FileChunk, FileChunk__Output as _pipelora_v1_FileChunk__Output } from './pipelora/v1/FileChunk.ts';
import type { FileHash as _pipelora_v1_FileHash, FileHash__Output as _pipelora_v1_FileHash__Output } from './pipelora/v1/FileHash.ts';
import type { FromWorker as _pipelora_v1_FromWorker, FromWorker__Output as _pipelora_v1_FromWorker__Output } from './pipelora/v1/FromWorker.ts';
import type { Heartbeat as _pipelora_v1_Heartbeat, Heartbeat__Output as _pipelora_v1_Heartbeat__Output } from './pipelora/v1/Heartbeat.ts';
import type { Hello as _pipelora_v1_Hello, Hello__Output as _pipelora_v1_Hello__Output } from './pipelora/v1/Hello.ts';
import type { HubModel as _pipelora_v1_HubModel, HubModel__Output as _pipelora_v1_HubModel__Output } from './pipelora/v1/HubModel.ts';
import type { ImportMatrices as _pipelora_v1_ImportMatrices, ImportMatrices__Output as _pipelora_v1_ImportMatrices__Output } from './pipelora/v1/ImportMatrices.ts';
import type { Infer as _pipelora_v1_Infer, Infer__Output as _pipelora_v1_Infer__Output } from './pipelora/v1/Infer.ts';
import type { InferResult as _pipelora_v1_InferResult, InferResult__Output as _pipelora_v1_InferResult__Output } from './pipelora/v1/InferResult.ts';
import type { InputFit as _pipelora_v1_InputFit, InputFit__Output as _pipelora_v1_InputFit__Output } from './pipelora/v1/InputFit.ts';
import type { InputStudy as _pipelora_v1_InputStudy, InputStudy__Output as _pipelora_v1_InputStudy__Output } from './pipelora/v1/InputStudy.ts';
import type { LayerTime as _pipelora_v1_LayerTime, LayerTime__Output as _pipelora_v1_LayerTime__Output } from './pipelora/v1/LayerTime.ts';
import type { Leaving as _pipelora_v1_Leaving, Leaving__Output as _pipelora_v1_Leaving__Output } from './pipelora/v1/Leaving.ts';
import type { LikelyToken as _pipelora_v1_LikelyToken, LikelyToken__Output as _pipelora_v1_LikelyToken__Output } from './pipelora/v1/LikelyToken.ts';
import type { LinkProbed as _pipelora_v1_LinkProbed, LinkProbed__Output as _pipelora_v1_LinkProbed__Output } from './pipelora/v1/LinkProbed.ts';
import type { ListCheckpoints as _pipelora_v1_ListCheckpoints, ListCheckpoints__Output as _pipelora_v1_ListCheckpoints__Output } from './pipelora/v1/ListCheckpoints.ts';
import type { LoraInit as _pipelora_v1_LoraInit, LoraInit__Output as _pipelora_v1_LoraInit__Output } from './pipelora/v1/LoraInit.ts';
import type { LoraPair as _pipelora_v1_LoraPair, LoraPair__Output as _pipelora_v1_LoraPair__Output } from './pipelora/v1/LoraPair.ts';
import type { Losses as _pipelora_v1_Losses, Losses__Output as _pipelora_v1_Losses__Output } from './pipelora/v1/Losses.ts';
import type { MakeNcclIds as _pipelora_v1_MakeNcclIds, MakeNcclIds__Output as _pipelora_v1_MakeNcclIds__Output } from './pipelora/v1/MakeNcclIds.ts';
import type { MatrixTensor as _pipelora_v1_MatrixTensor, MatrixTensor__Output as _pipelora_v1_MatrixTensor__Output } from './pipelora/v1/MatrixTensor.ts';
import type { MemoryReport as _pipelora_v1_MemoryReport, MemoryReport__Output as _pipelora_v1_MemoryReport__Output } from './pipelora/v1/MemoryReport.ts';
import type { MicroBatches as _pipelora_v1_MicroBatches, MicroBatches__Output as _pipelora_v1_MicroBatches__Output } from './pipelora/v1/MicroBatches.ts';
import type { NamedMatrix as _pipelora_v1_NamedMatrix, NamedMatrix__Output as _pipelora_v1_NamedMatrix__Output } from './pipelora/v1/NamedMatrix.ts';
import type { NcclIds as _pipelora_v1_NcclIds, NcclIds__Output as _pipelora_v1_NcclIds__Output } from './pipelora/v1/NcclIds.ts';
import type { OpenCache as _pipelora_v1_OpenCache, OpenCache__Output as _pipelora_v1_OpenCache__Output } from './pipelora/v1/OpenCache.ts';
import type { OutputFolder as _pipelora_v1_OutputFolder, OutputFolder__Output as _pipelora_v1_OutputFolder__Output } from './pipelora/v1/OutputFolder.ts';
import type { OutputFolderState as _pipelora_v1_OutputFolderState, OutputFolderState__Output as _pipelora_v1_OutputFolderState__Output } from './pipelora/v1/OutputFolderState.ts';
import type { Peer as _pipelora_v1_Peer, Peer__Output as _pipelora_v1_Peer__Output } from './pipelora/v1/Peer.ts';
import type { Preflight as _pipelora_v1_Preflight, Preflight__Output as _pipelora_v1_Preflight__Output } from './pipelora/v1/Preflight.ts';
import type { PreflightReport as _pipelora_v1_PreflightReport, PreflightReport__Output as _pipelora_v1_PreflightReport__Output } from './pipelora/v1/PreflightReport.ts';
import type { Prepare as _pipelora_v1_Prepare, Prepare__Output as _pipelora_v1_Prepare__Output } from './pipelora/v1/Prepare.ts';
import type { Prepared as _pipelora_v1_Prepared, Prepared__Output as _pipelora_v1_Prepared__Output } from './pipelora/v1/Prepared.ts';
import type { ProbeLink as _pipelora_v1_ProbeLink, ProbeLink__Output as _pipelora_v1_ProbeLink__Output } from './pipelora/v1/ProbeLink.ts';
import type { Quantization as _pipelora_v1_Quantization, Quantization__Output as _pipelora_v1_Quantization__Output } from './pipelora/v1/Quantization.ts';
import type { RankReport as _pipelora_v1_RankReport, RankReport__Output as _pipelora_v1_RankReport__Output } from './pipelora/v1/RankReport.ts';
import type { ReadClock as _pipelora_v1_ReadClock, ReadClock__Output as _pipelora_v1_ReadClock__Output } from './pipelora/v1/ReadClock.ts';
import type { ReadFile as _pipelora_v1_ReadFile, ReadFile__Output as _pipelora_v1_ReadFile__Output } from './pipelora/v1/ReadFile.ts';
import type { ReadInputs as _pipelora_v1_ReadInputs, ReadInputs__Output as _pipelora_v1_ReadInputs__Output } from './pipelora/v1/ReadInputs.ts';
import type { ReportRank as _pipelora_v1_ReportRank, ReportRank__Output as _pipelora_v1_ReportRank__Output } from './pipelora/v1/ReportRank.ts';
import type { RunStep as _pipelora_v1_RunStep, RunStep__Output as _pipelora_v1_RunStep__Output } from './pipelora/v1/RunStep.ts';
import type { Segment as _pipelora_v1_Segment, Segment__Output as _pipelora_v1_Segment__Output } from './pipelora/v1/Segment.ts';
import type { Shutdown as _pipelora_v1_Shutdown, Shutdown__Output as _pipelora_v1_Shutdown__Output } from './pipelora/v1/Shutdown.ts';
import type { StepResult as _pipelora_v1_StepResult, StepResult__Output as _pipelora_v1_StepResult__Output } from './pipelora/v1/StepResult.ts';
import type { StepTimes as _pipelora_v1_StepTimes, StepTimes__Output as _pipelora_v1_StepTimes__Output } from './pipelora/v1/StepTimes.ts';
import type { StudiedInput as _pipelora_v1_StudiedInput, StudiedInput__Output as _pipelora_v1_StudiedInput__Output } from './pipelora/v1/StudiedInput.ts';
import type { ToWorker as _pipelora_v1_ToWorker, ToWorker__Output as _pipelora_v1_ToWorker__Output } from './pipelora/v1/ToWorker.ts';
import type { TraceSpan as _pipelora_v1_TraceSpan, TraceSpan__Output as _pipelora_v1_TraceSpan__Output } from './pipelora/v1/TraceSpan.ts';
import type { TrainedModule as _pipelora_v1_TrainedModule, TrainedModule__Output as _pipelora_v1_TrainedModule__Output } from './pipelora/v1/TrainedModule.ts';
import type { Update as _pipelora_v1_Update, Update__Output as _pipelora_v1_Update__Output } from './pipelora/v1/Update.ts';
import type { UpdateGroup as _pipelora_v1_UpdateGroup, UpdateGroup__Output as _pipelora_v1_UpdateGroup__Output } from './pipelora/v1/UpdateGroup.ts';
import type { Welcome as _pipelora_v1_Welcome, Welcome__Output as _pipelora_v1_Welcome__Output } from './pipelora/v1/Welcome.ts';
import type { WriteFile as _pipelora_v1_WriteFile, WriteFile__Output as _pipelora_v1_WriteFile__Output } from './pipelora/v1/WriteFile.ts';

type SubtypeConstructor<Constructor extends new (...args: any) => any, Subtype> = {
  new(...args: ConstructorParameters<Constructor>): Subtype;
};

export interface ProtoGrpcType {
  pipelora: {
    v1: {
      Adapter: MessageTypeDefinition<_pipelora_v1_Adapter, _pipelora_v1_Adapter__Output>
      AdapterStep: MessageTypeDefinition<_pipelora_v1_AdapterStep, _pipelora_v1_AdapterStep__Output>
      AdapterSums: MessageTypeDefinition<_pipelora_v1_AdapterSums, _pipelora_v1_AdapterSums__Output>
      BoundaryState: MessageTypeDefinition<_pipelora_v1_BoundaryState, _pipelora_v1_BoundaryState__Output>
      Calibrate: MessageTypeDefinition<_pipelora_v1_Calibrate, _pipelora_v1_Calibrate__Output>
      Calibrated: MessageTypeDefinition<_pipelora_v1_Calibrated, _pipelora_v1_Calibrated__Output>
      CheckpointFiles: MessageTypeDefinition<_pipelora_v1_CheckpointFiles, _pipelora_v1_CheckpointFiles__Output>
      CheckpointList: MessageTypeDefinition<_pipelora_v1_CheckpointList, _pipelora_v1_CheckpointList__Output>
      Clock: MessageTypeDefinition<_pipelora_v1_Clock, _pipelora_v1_Clock__Output>
      CommitFiles: MessageTypeDefinition<_pipelora_v1_CommitFiles, _pipelora_v1_CommitFiles__Output>
      Coordination: SubtypeConstructor<typeof grpc.Client, _pipelora_v1_CoordinationClient> & { service: _pipelora_v1_CoordinationDefinition }
      Done: MessageTypeDefinition<_pipelora_v1_Done, _pipelora_v1_Done__Output>
      Draw: MessageTypeDefinition<_pipelora_v1_Draw, _pipelora_v1_Draw__Output>
      DrawnToken: MessageTypeDefinition<_pipelora_v1_DrawnToken, _pipelora_v1_DrawnToken__Output>
      Evaluate: MessageTypeDefinition<_pipelora_v1_Evaluate, _pipelora_v1_Evaluate__Output>
      EvaluateResult: MessageTypeDefinition<_pipelora_v1_EvaluateResult, _pipelora_v1_EvaluateResult__Output>
      ExportMatrices: MessageTypeDefinition<_pipelora_v1_ExportMatrices, _pipelora_v1_ExportMatrices__Output>
      Failure: MessageTypeDefinition<_pipelora_v1_Failure, _pipelora_v1_Failure__Output>
      FileChunk: MessageTypeDefinition<_pipelora_v1_FileChunk, _pipelora_v1_FileChunk__Output>
      FileHash: MessageTypeDefinition<_pipelora_v1_FileHash, _pipelora_v1_FileHash__Output>
      FromWorker: MessageTypeDefinition<_pipelora_v1_FromWorker, _pipelora_v1_FromWorker__Output>
      Heartbeat: MessageTypeDefinition<_pipelora_v1_Heartbeat, _pipelora_v1_Heartbeat__Output>
      Hello: MessageTypeDefinition<_pipelora_v1_Hello, _pipelora_v1_Hello__Output>
      HubModel: MessageTypeDefinition<_pipelora_v1_HubModel, _pipelora_v1_HubModel__Output>
      ImportMatrices: MessageTypeDefinition<_pipelora_v1_ImportMatrices, _pipelora_v1_ImportMatrices__Output>
      Infer: MessageTypeDefinition<_pipelora_v1_Infer, _pipelora_v1_Infer__Output>
      InferResult: MessageTypeDefinition<_pipelora_v1_InferResult, _pipelora_v1_InferResult__Output>
      InputFit: MessageTypeDefinition<_pipelora_v1_InputFit, _pipelora_v1_InputFit__Output>
      InputStudy: MessageTypeDefinition<_pipelora_v1_InputStudy, _pipelora_v1_InputStudy__Output>
      LayerTime: MessageTypeDefinition<_pipelora_v1_LayerTime, _pipelora_v1_LayerTime__Output>
      Leaving: MessageTypeDefinition<_pipelora_v1_Leaving, _pipelora_v1_Leaving__Output>
      LikelyToken: MessageTypeDefinition<_pipelora_v1_LikelyToken, _pipelora_v1_LikelyToken__Output>
      LinkProbed: MessageTypeDefinition<_pipelora_v1_LinkProbed, _pipelora_v1_LinkProbed__Output>
      ListCheckpoints: MessageTypeDefinition<_pipelora_v1_ListCheckpoints, _pipelora_v1_ListCheckpoints__Output>
      LoraInit: MessageTypeDefinition<_pipelora_v1_LoraInit, _pipelora_v1_LoraInit__Output>
      LoraPair: MessageTypeDefinition<_pipelora_v1_LoraPair, _pipelora_v1_LoraPair__Output>
      Losses: MessageTypeDefinition<_pipelora_v1_Losses, _pipelora_v1_Losses__Output>
      MakeNcclIds: MessageTypeDefinition<_pipelora_v1_MakeNcclIds, _pipelora_v1_MakeNcclIds__Output>
      MatrixTensor: MessageTypeDefinition<_pipelora_v1_MatrixTensor, _pipelora_v1_MatrixTensor__Output>
      MemoryReport: MessageTypeDefinition<_pipelora_v1_MemoryReport, _pipelora_v1_MemoryReport__Output>
      MicroBatches: MessageTypeDefinition<_pipelora_v1_MicroBatches, _pipelora_v1_MicroBatches__Output>
      NamedMatrix: MessageTypeDefinition<_pipelora_v1_NamedMatrix, _pipelora_v1_NamedMatrix__Output>
      NcclIds: MessageTypeDefinition<_pipelora_v1_NcclIds, _pipelora_v1_NcclIds__Output>
      OpenCache: MessageTypeDefinition<_pipelora_v1_OpenCache, _pipelora_v1_OpenCache__Output>
      OutputFolder: MessageTypeDefinition<_pipelora_v1_OutputFolder, _pipelora_v1_OutputFolder__Output>
      OutputFolderState: MessageTypeDefinition<_pipelora_v1_OutputFolderState, _pipelora_v1_OutputFolderState__Output>
      Peer: MessageTypeDefinition<_pipelora_v1_Peer, _pipelora_v1_Peer__Output>
      Preflight: MessageTypeDefinition<_pipelora_v1_Preflight, _pipelora_v1_Preflight__Output>
      PreflightReport: MessageTypeDefinition<_pipelora_v1_PreflightReport, _pipelora_v1_PreflightReport__Output>
      Prepare: MessageTypeDefinition<_pipelora_v1_Prepare, _pipelora_v1_Prepare__Output>
      Prepared: MessageTypeDefinition<_pipelora_v1_Prepared, _pipelora_v1_Prepared__Output>
      ProbeLink: MessageTypeDefinition<_pipelora_v1_ProbeLink, _pipelora_v1_ProbeLink__Output>
      Quantization: MessageTypeDefinition<_pipelora_v1_Quantization, _pipelora_v1_Quantization__Output>
      RankReport: MessageTypeDefinition<_pipelora_v1_RankReport, _pipelora_v1_RankReport__Output>
      ReadClock: MessageTypeDefinition<_pipelora_v1_ReadClock, _pipelora_v1_ReadClock__Output>
      ReadFile: MessageTypeDefinition<_pipelora_v1_ReadFile, _pipelora_v1_ReadFile__Output>
      ReadInputs: MessageTypeDefinition<_pipelora_v1_ReadInputs, _pipelora_v1_ReadInputs__Output>
      ReportRank: MessageTypeDefinition<_pipelora_v1_ReportRank, _pipelora_v1_ReportRank__Output>
      RunStep: MessageTypeDefinition<_pipelora_v1_RunStep, _pipelora_v1_RunStep__Output>
      Segment: MessageTypeDefinition<_pipelora_v1_Segment, _pipelora_v1_Segment__Output>
      Shutdown: MessageTypeDefinition<_pipelora_v1_Shutdown, _pipelora_v1_Shutdown__Output>
      StepResult: MessageTypeDefinition<_pipelora_v1_StepResult, _pipelora_v1_StepResult__Output>
      StepTimes: MessageTypeDefinition<_pipelora_v1_StepTimes, _pipelora_v1_StepTimes__Output>
      StudiedInput: MessageTypeDefinition<_pipelora_v1_StudiedInput, _pipelora_v1_StudiedInput__Output>
      ToWorker: MessageTypeDefinition<_pipelora_v1_ToWorker, _pipelora_v1_ToWorker__Output>
      TraceSpan: MessageTypeDefinition<_pipelora_v1_TraceSpan, _pipelora_v1_TraceSpan__Output>
      TrainedModule: MessageTypeDefinition<_pipelora_v1_TrainedModule, _pipelora_v1_TrainedModule__Output>
      Update: MessageTypeDefinition<_pipelora_v1_Update, _pipelora_v1_Update__Output>
      UpdateGroup: MessageTypeDefinition<_pipelora_v1_UpdateGroup, _pipelora_v1_UpdateGroup__Output>
      Welcome: MessageTypeDefinition<_pipelora_v1_Welcome, _pipelora_v1_Welcome__Output>
      WriteFile: MessageTypeDefinition<_pipelora_v1_WriteFile, _pipelora_v1_WriteFile__Output>
    }
  }
}

