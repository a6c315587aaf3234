// Original file: proto/pipelora/v1/control.proto


export interface ReadClock {
}

export interface ReadClock__Output {
}
