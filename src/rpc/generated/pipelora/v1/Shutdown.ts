// Original file: proto/pipelora/v1/control.proto


export interface Shutdown {
}

export interface Shutdown__Output {
}
