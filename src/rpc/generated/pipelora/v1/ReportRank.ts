// Original file: proto/pipelora/v1/control.proto


export interface ReportRank {
}

export interface ReportRank__Output {
}
