// Original file: proto/pipelora/v1/control.proto


export interface ListCheckpoints {
}

export interface ListCheckpoints__Output {
}
