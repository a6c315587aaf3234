// Original file: proto/pipelora/v1/control.proto


export interface Leaving {
}

export interface Leaving__Output {
}
