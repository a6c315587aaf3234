// Original file: proto/pipelora/v1/control.proto


export interface CancelGenerate {
}

export interface CancelGenerate__Output {
}
